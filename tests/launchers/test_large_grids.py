"""A thousand cells, fully typed, in seconds. Processor time: other work here must not count."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launchers import slurm_state
from launchers.plan import Entry
from launchers.submission import Jobs
from zolab import cli, compose, ledger

GRID = ("optimizer=mezo,mezo_momentum", "sparsity=none,random", "optimizer.lr=1e-6,1e-5")


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SLURM's answers without SLURM; the scripts it was given."""
    scripts: list[str] = []
    monkeypatch.setattr(slurm_state, "is_available", lambda: True)
    monkeypatch.setattr(slurm_state, "has_gpus", lambda partition=None: True)
    monkeypatch.setattr(slurm_state, "max_array_size", lambda: 400)
    monkeypatch.setattr(slurm_state, "job_states", lambda jobs, *_: dict.fromkeys(jobs, "PENDING"))
    monkeypatch.setattr(
        slurm_state, "sbatch", lambda script, options=(): scripts.append(script) or "7"
    )
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    return scripts


def sweep(tmp_path: Path, *more: str) -> float:
    begin = time.process_time()
    seeds = f"seed=range(0,{1000 // 8})"
    assert cli.main(["-m", *GRID, seeds, f"run_root={tmp_path / 'runs'}", *more]) == 0
    return time.process_time() - begin


def test_a_thousand_cells_are_planned_and_queued_in_seconds(
    tmp_path: Path, no_cluster: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    planning = sweep(tmp_path, "sweep.dry_run=true", "launcher=slurm")
    assert planning <= 10.0
    assert capsys.readouterr().out.startswith("1000 cells: 1000 to run\n")
    assert not (tmp_path / "runs").exists()
    both = sweep(tmp_path, "launcher=slurm")
    assert both - planning <= 5.0
    assert [text.count("#SBATCH --array=0-399%256") for text in no_cluster] == [1, 1, 0]
    assert "#SBATCH --array=0-199%200" in no_cluster[2]
    folders = list((tmp_path / "runs").glob("[0-9a-f]*"))
    assert len(folders) == 1000
    assert {len(os.listdir(folder)) for folder in folders} == {2}
    names, groups = set(), set()
    for folder in folders[::100]:
        assert ledger.read_status(folder)["state"] == "submitted"
        cell = compose.read_cell(folder)
        assert compose.run_id(cell) == folder.name
        groups.add(cell["tracking"]["group"])
        names.add(Jobs().of(Entry(folder.name, folder, {}, "")))
    assert all(name.startswith("7_") for name in names)
    assert len(groups) == 1, "wandb shows the curves of a sweep together"
    assert groups.pop().startswith("sweep-")
    again = sweep(tmp_path, "launcher=slurm")
    assert "1000 cells: 1000 submitted, 0 to run" in capsys.readouterr().out
    assert again <= 15.0
    assert len(no_cluster) == 3


def test_a_report_is_queued_behind_the_arrays(
    tmp_path: Path, no_cluster: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        slurm_state, "sbatch", lambda text, options=(): asked.append((text, options)) or "7"
    )
    run_root = f"run_root={tmp_path / 'runs'}"
    told = ["-m", "seed=0,1", "launcher=slurm", "launcher.report=true", run_root]
    assert cli.main(told) == 0
    assert [options for _, options in asked] == [(), ["--dependency=afterany:7"]]
    script = asked[1][0]
    assert f"-m zolab report {tmp_path / 'runs'} --out {tmp_path / 'runs' / 'report'}" in script
    assert "gpus" not in script


def test_a_wrong_value_deep_in_a_large_grid_is_refused_by_name(
    tmp_path: Path, no_cluster: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = cli.main(["-m", "seed=0,1", "optimizer.lr=1e-6,fast", f"run_root={tmp_path / 'runs'}"])
    assert told == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
