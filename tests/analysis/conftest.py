"""Shared run folders: written once per session, as local files and as offline wandb files."""

from __future__ import annotations

import os
from pathlib import Path

import analysis_synth as synth
import pytest

# Numbers whose decimal form needs every digit: a lossy reader or writer would show.
MEZO_0 = [0.1 + 0.2, 0.55, 0.6, 2 / 3, 0.7]
MEZO_1 = [0.3, 0.5, 0.61, 0.7, 0.71]


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs in both forms; `bb` was killed and resumed, with overlapping steps."""
    os.environ.setdefault("WANDB_SILENT", "true")
    root = tmp_path_factory.mktemp("both")
    small = synth.masked("small_weights", 0.75) | {"optimizer.lr": 1e-6}
    plans = {
        "aa": (synth.config(0), synth.rows(MEZO_0, test=0.69)),
        "cc": (synth.config(0, **small), synth.rows([0.3, 0.7, 0.72, 0.74, 0.75], test=0.73)),
        "dd": (synth.config(0, **synth.zero_shot(False)), synth.rows([0.3], test=0.31)),
        "ee": (synth.config(1, **small), synth.rows([0.3, 0.65, float("nan")])),
    }
    for run_id, (cfg, lines) in plans.items():
        status = {"state": "done" if run_id != "ee" else "failed", "error": "loss is not finite"}
        folder = synth.write_local(root, run_id, cfg, lines, status=status)
        synth.write_wandb(folder, run_id, cfg, lines)
    cfg = synth.config(1)
    first = synth.rows([*MEZO_1[:2], 0.6100001], seconds=0.5)
    second = synth.rows(MEZO_1, test=0.70, seconds=0.02, attempt=2)[2:]
    folder = synth.write_local(root, "bb", cfg, first + second, result={"schema": 1})
    synth.write_wandb(folder, "bb", cfg, first)
    synth.write_wandb(folder, "bb", cfg, second)
    return root


@pytest.fixture(scope="session")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Bytes of a `.wandb` file that spans several blocks of 32 KiB."""
    lines = synth.rows([0.5 + i / 1000 for i in range(220)], test=0.6)
    path = synth.write_wandb(tmp_path_factory.mktemp("long"), "long", synth.config(0), lines)
    return path.read_bytes()
