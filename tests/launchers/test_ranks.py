"""A cell that spans two nodes, started by srun."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_slurm import CONFIG, wait_until

from launchers.sweep import launch
from tests.test_resume import prepare
from zolab import compose, ledger
from zolab.journal import read_journal
from zolab.tracking.local import read_rows


@pytest.mark.slurm
def test_a_cell_on_two_nodes(
    slurm_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = prepare(tmp_path, "train.steps=6", "train.agree_every=2")
    launcher = {**CONFIG, "cpus": 1, "gpus": 0, "nodes": 2, "ranks": 1}
    assert launch([compose.read_cell(folder)], launcher, {}).exit_code == 0
    wait_until(lambda: ledger.state_of(folder) in ("done", "failed"), 240)
    assert ledger.read_json(folder / "result.json").get("ranks") == 2, ledger.read_status(folder)
    assert [row.step for row in read_journal(folder)] == list(range(1, 7))
    assert 0 < read_rows(folder / "metrics.jsonl")[-1]["perf/payload_bytes"] <= 100
    assert [path.name for path in folder.glob(".*")] == []
    logs = sorted(path.name for path in (tmp_path / ".jobs").glob("*.out"))
    assert [name.rpartition("_log")[0][-2:] for name in logs] == ["_0", "_1"], "a log a process"
