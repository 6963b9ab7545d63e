from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchers.local import parallel_cells, visible_gpus
from zolab import ledger
from zolab.errors import UserError


def results(outcome) -> list[dict]:
    return [ledger.read_json(e.run_dir / "result.json") for e in outcome.plan.entries]


def logs(outcome) -> str:
    return "\n".join(
        Path(ledger.read_status(e.run_dir)["log"]).read_text() for e in outcome.plan.entries
    )


def test_two_at_a_time_with_one_thread_each(make_cell, sweep):
    outcome = sweep([make_cell(seed, seconds=0.8) for seed in range(4)])
    assert outcome.exit_code == 0
    found = results(outcome)
    assert [r["seed"] for r in found] == [0, 1, 2, 3]
    edges = sorted([(r["began"], 1) for r in found] + [(r["ended"], -1) for r in found])
    running = [sum(change for _, change in edges[: i + 1]) for i in range(len(edges))]
    assert max(running) == 2
    assert logs(outcome).count("OMP_NUM_THREADS=1\nOMP_WAIT_POLICY=passive") == 4
    assert not any(r["torch"] for r in found), "the launch itself must not load torch"
    assert outcome.text.startswith("4 cells: 4 to run\n")
    assert "[4/4 done]" in outcome.text
    assert "4/4 done" in outcome.text.splitlines()[-1]


def test_few_files_per_cell(make_cell, sweep):
    outcome = sweep([make_cell()])
    entry = outcome.plan.entries[0]
    assert sorted(p.name for p in entry.run_dir.iterdir()) == [
        "attempts", "config.json", "heartbeat", "result.json", "status.json", "was_here",
    ]  # fmt: skip
    assert [p.suffix for p in (entry.run_dir.parent / ".jobs").iterdir()] == [".out"]


def test_failures_stop_no_other_cell_and_are_all_listed(make_cell, sweep):
    kinds = ["raise", "work", "kill", "work", "exit", "nothing"]
    outcome = sweep([make_cell(seed, do) for seed, do in enumerate(kinds)])
    states = [e.state for e in outcome.plan.entries]
    assert states == ["failed", "done", "failed", "done", "failed", "failed"]
    assert outcome.exit_code == 1
    errors = {e.cell["do"]: e.error for e in outcome.errors}
    assert errors["raise"] == "ValueError: told to raise"
    assert errors["kill"].startswith("killed by SIGKILL (out of memory, or killed by hand)")
    assert re.search(r"last seen with \d+ MiB", errors["kill"])
    assert errors["nothing"] == "ended without a result"
    table = outcome.text.partition("4 of 6 cells have no result:")[2]
    for entry in outcome.errors:
        assert f"{entry.run_id}  do={entry.cell['do']}" in table
        assert ledger.read_status(entry.run_dir)["state"] == entry.state
    assert table.count("says hello") == 2, "the last lines of killed and silent cells are shown"
    assert "| ValueError: told to raise" in table


def test_a_killed_cell_is_not_tried_again_unasked(make_cell, sweep):
    cells = [make_cell(0, "kill")]
    states = [sweep(cells).plan.entries[0].state for _ in range(2)]
    assert states == ["failed", "failed"]
    folder = sweep(cells).plan.entries[0].run_dir
    assert len(list((folder / "attempts").iterdir())) == 1
    assert sweep(cells, retry="failed").exit_code == 1
    assert len(list((folder / "attempts").iterdir())) == 2


def test_a_terminated_cell_is_continued(make_cell, sweep):
    cells = [make_cell(0, "stop once")]
    first = sweep(cells)
    assert [e.state for e in first.plan.entries] == ["preempted"]
    assert "killed cells go on with the same command" in first.text
    assert sweep(cells).exit_code == 0


def test_finished_cells_are_skipped_and_duplicates_merged(make_cell, sweep):
    first = sweep([make_cell(0), make_cell(1)])
    before = [e.run_dir.joinpath("result.json").stat().st_mtime_ns for e in first.plan.entries]
    start = time.monotonic()
    again = sweep([make_cell(0), make_cell(1), make_cell(0)])
    assert time.monotonic() - start < 0.5
    assert again.exit_code == 0
    assert again.text.startswith("2 cells (1 duplicate merged): 2 done, 0 to run\n")
    after = [e.run_dir.joinpath("result.json").stat().st_mtime_ns for e in again.plan.entries]
    assert before == after


def test_retry_force_and_dry_run(make_cell, sweep):
    cells = [make_cell(0), make_cell(1, "raise once")]
    assert sweep(cells).exit_code == 1
    dry = sweep(cells, dry_run=True)
    assert (dry.exit_code, [e.action for e in dry.plan.entries]) == (0, ["skip", "leave"])
    left = sweep(cells)
    assert (left.exit_code, left.plan.entries[1].state) == (1, "failed")
    assert "ValueError: told to raise" in left.text
    retried = sweep(cells, retry="failed")
    assert (retried.exit_code, retried.plan.entries[1].state) == (0, "done")
    forced = sweep(cells[:1], force=True)
    assert forced.exit_code == 0
    folder = forced.plan.entries[0].run_dir
    assert (folder.parent / ".replaced" / f"{folder.name}-1" / "result.json").exists()
    assert len(list((folder / "attempts").iterdir())) == 1


def test_cancelled_cells_stay_cancelled_until_asked_for(make_cell, sweep, tmp_path):
    cells = [make_cell(0)]
    entry = sweep(cells, dry_run=True).plan.entries[0]
    entry.run_dir.mkdir(parents=True)
    ledger.write_status(entry.run_dir, "cancelled")
    assert sweep(cells, retry="failed").plan.entries[0].state == "cancelled"
    assert sweep(cells, retry="cancelled").plan.entries[0].state == "done"


def test_dry_run_writes_nothing(make_cell, sweep, tmp_path):
    outcome = sweep([make_cell(0)], dry_run=True)
    assert "planned   run   " in outcome.text
    assert list(tmp_path.iterdir()) == []


def test_a_cell_of_another_process_is_waited_for(make_cell, sweep, tmp_path):
    cells = [make_cell(0, seconds=1.5), make_cell(1)]
    entry = sweep(cells, dry_run=True).plan.entries[0]
    code = "import sys, conftest, json; conftest.write_cell(json.loads(sys.argv[1]))"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, json.dumps(cells[0])], check=True, cwd=here)
    command = "import sys, fake_cells; fake_cells.run(sys.argv[1])"
    other = subprocess.Popen([sys.executable, "-c", command, str(entry.run_dir)])
    while ledger.state_of(entry.run_dir) != "running":
        time.sleep(0.02)
    outcome = sweep(cells)
    assert other.wait() == 0
    assert outcome.text.startswith("2 cells: 1 running, 1 to run\n")
    assert outcome.exit_code == 0
    assert len(list((entry.run_dir / "attempts").iterdir())) == 1


def test_a_cell_whose_other_process_dies_is_taken_over(make_cell, sweep):
    cells = [make_cell(0, seconds=1.0)]
    entry = sweep(cells, dry_run=True).plan.entries[0]
    entry.run_dir.mkdir(parents=True)
    hold = "import sys, time; from zolab import ledger; ledger.acquire(sys.argv[1]); time.sleep(1)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(entry.run_dir)])
    while ledger.state_of(entry.run_dir) != "running":
        time.sleep(0.02)
    outcome = sweep(cells)
    other.wait()
    assert outcome.exit_code == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_sweep_leaves_no_process_and_continues(make_cell, sweep, tmp_path, how):
    cells = [make_cell(seed, seconds=30) for seed in range(3)]
    code = (
        "import sys, json\n"
        "from conftest import STORE, FUNCTION\n"
        "from launchers.sweep import launch\n"
        "print(launch(json.loads(sys.argv[1]), {'kind': 'local', 'parallel': 2}, store=STORE, "
        "function=FUNCTION).exit_code)"
    )
    here = Path(__file__).parent
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(cells)], cwd=here, stdout=subprocess.PIPE, text=True
    )
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 20
    while len(beats := list(runs.glob("*/heartbeat"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [json.loads(beat.read_text())["pid"] for beat in beats]
    launcher.send_signal(how)
    text, _ = launcher.communicate(timeout=15)
    assert text.splitlines()[-1] == "130"
    assert "the same command continues" in text
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    again = sweep(cells, dry_run=True)
    assert sorted(e.state for e in again.plan.entries) == ["planned", "preempted", "preempted"]
    assert len(again.plan.to("run")) == 3


def test_impossible_wishes_are_refused(make_cell, sweep, tmp_path):
    with pytest.raises(UserError, match=r"launcher\.kind=cloud"):
        sweep([make_cell()], launcher={"kind": "cloud"})
    with pytest.raises(UserError, match=r"sweep\.wait=false"):
        sweep([make_cell()], wait=False)
    assert list(tmp_path.iterdir()) == []


def test_gpus_are_shared_out_and_decide_how_many_run(make_cell, sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]
    assert parallel_cells({"parallel": None}) == 2
    outcome = sweep([make_cell(seed, seconds=0.5) for seed in range(2)])
    text = logs(outcome)
    assert "CUDA_VISIBLE_DEVICES=3" in text
    assert "CUDA_VISIBLE_DEVICES=5" in text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert parallel_cells({"parallel": None, "threads": 1}) == len(os.sched_getaffinity(0))
