"""Real cells: a SLURM array gives the result files of the local launcher."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launchers import slurm, watch
from launchers.sweep import launch
from tests.test_resume import exact_rows, journal_text, prepare
from zolab import compose, ledger

#: What a result tells about the machine and the moment, not about the run.
MEASURED = {
    "train_seconds", "wall_seconds", "first_step_seconds", "peak_bytes", "base_bytes",
    "eval_peak_bytes", "num_attempts", "startup",
}  # fmt: skip


def cells_in(root: Path) -> list[dict]:
    folders = [
        prepare(root, "train.steps=6", "train.eval_every=3", f"sparsity={mask}", f"seed={seed}")
        for mask in ("none", "small_weights")
        for seed in (0, 1)
    ]
    return [compose.read_cell(folder) for folder in folders]


@pytest.mark.slurm
def test_an_array_of_real_cells_equals_the_local_launcher(
    slurm_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.Watch.__init__, "__defaults__", ((), 0.5, 0.5, None))
    monkeypatch.setattr(slurm.follow, "__defaults__", (0.5,))
    here, there = cells_in(tmp_path / "local"), cells_in(tmp_path / "slurm")
    local = launch(here, {"kind": "local", "parallel": 2, "threads": 1}, {})
    assert local.exit_code == 0
    # One CPU a cell: sums inside a matrix product depend on the number of threads.
    config = {
        "kind": "slurm", "cpus": 1, "gpus": 0, "time_minutes": 5, "array_parallelism": 2,
        "setup": [],
    }  # fmt: skip
    begin = time.monotonic()
    assert launch(there, config, {"wait": False}).exit_code == 0
    assert time.monotonic() - begin < 10
    folders = [Path(cell["run_root"]) / compose.run_id(cell) for cell in there]
    deadline = time.monotonic() + 180
    while not all(ledger.state_of(folder) == "done" for folder in folders):
        assert time.monotonic() < deadline, [ledger.read_status(f) for f in folders]
        assert "failed" not in {ledger.state_of(folder) for folder in folders}
        time.sleep(0.5)
    for folder in folders:
        twin = tmp_path / "local" / folder.name
        assert result_of(folder) == result_of(twin)
        assert exact_rows(folder) == exact_rows(twin)
        assert journal_text(folder) == journal_text(twin)
        assert ledger.read_status(folder)["job_id"]
    assert len({result_of(folder)["weights_hash"] for folder in folders}) == 4


def result_of(folder: Path) -> dict:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in MEASURED}
