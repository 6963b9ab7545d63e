"""Fixtures shared by all tests: one thread, no network, tiny models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Before anything imports triton: its kernels are run by its interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder of the embedded task's files, to change at will."""
    from zolab import assets

    return Path(shutil.copytree(assets.task_dir("uci_sent"), tmp_path / "data"))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A folder of the embedded model's files, to change at will."""
    from zolab import assets

    return Path(shutil.copytree(assets.model_dir("opt-prompt-2m"), tmp_path / "model"))
