"""The short form of `make chaos`: real cells, disturbed in every way, equal undisturbed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.chaos import SHORT, chaos


@pytest.mark.slurm
def test_a_disturbed_sweep_equals_an_undisturbed_one(
    slurm_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = chaos(SHORT, tmp_path)
    assert "cells done exactly once" in told[-1]
