"""Recorded ZO2 runs, repeated with the layers in CPU memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.conftest import TRACES
from tests.golden.repeat import run_trace
from zolab.optim import Offload

TIERS = {"cpu": {"tier": "cpu"}, "disk": {"tier": "disk"}, "host": {"upload_only": True}}


@pytest.mark.parametrize("tier", list(TIERS))
@pytest.mark.parametrize("path", sorted(TRACES.glob("zo2_*.json")), ids=lambda path: path.stem)
def test_zo2_trace_through_offload(path: Path, tier: str) -> None:
    placement = Offload(**TIERS[tier])
    run_trace(path, placement)
    assert placement.pipeline.uploaded > 0
    assert len(placement.pipeline.seats) == 2
