"""status, cancel, retry, logs and clean on runs folders made of plain files."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launchers import member, slurm_state, status, verbs
from zolab import cli, compose, ledger
from zolab.errors import UserError

NAMES = [f"{i:x}" * 16 for i in range(10)]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cell in each state, no SLURM in sight."""
    monkeypatch.setattr(slurm_state, "is_available", lambda: False)
    for name, state in zip(NAMES, ledger.STATES, strict=False):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(f"# mezo on it, {state}\nseed: 0\n")
        if state != "planned":
            ledger.write_status(folder, state, attempt=1)
    running, done, submitted = (tmp_path / NAMES[i] for i in (2, 3, 1))
    ledger.acquire(running)
    beat = {"step": 5, "steps": 20, "eta_seconds": 30.0, "forwards_per_second": 4.0}
    ledger.write_json(running / "heartbeat", {**beat, "metrics": {"dev/loss": 0.25}})
    best = {"step": 20, "test/accuracy": 0.75}
    ledger.write_json(done / "result.json", {"steps": 20, "wall_seconds": 40.0, "best": best})
    ledger.write_status(submitted, "submitted", submission=["abc", 4])
    (tmp_path / ".jobs").mkdir()
    ledger.write_json(tmp_path / ".jobs" / "abc.json", {"array": "17", "cells": []})
    ledger.write_status(tmp_path / NAMES[4], "failed", error="ValueError: no", attempt=1)
    return tmp_path


def test_status_tells_each_cell(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert [by_name[name].split()[1] for name in NAMES[:8]] == ledger.STATES
    assert "17_4" in by_name[NAMES[1]]
    running = by_name[NAMES[2]]
    assert all(text in running for text in ("5/20", "4.0", "0:30", "dev/loss 0.250"))
    assert "test/accuracy 0.750" in by_name[NAMES[3]]
    assert "    ValueError: no" in lines
    # 30 s left of the running cell, and four cells of 40 s wait for its place
    assert lines[-1].startswith("8 cells: 1 planned, 1 submitted, 1 running, 1 done, 1 failed")
    assert lines[-1].endswith("about 3:10 left")


def test_status_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json", str(runs)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == dict.fromkeys(ledger.STATES, 1)
    assert told["eta_seconds"] == 190.0
    cell = next(c for c in told["cells"] if c["state"] == "running")
    assert (cell["step"], cell["metrics"]) == (5, {"dev/loss": 0.25})


def test_watching_ends_with_the_last_cell(runs: Path, capsys, monkeypatch) -> None:
    for name in NAMES[:8]:
        ledger.write_json(runs / name / "result.json", {})
    monkeypatch.setattr(verbs, "_WATCH_SECONDS", 0.0)
    assert cli.main(["status", "--watch", str(runs)]) == 0
    assert capsys.readouterr().out == "8 cells: 8 done\n"


def test_a_watcher_asks_slurm_twice_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(slurm_state, "is_available", lambda: True)
    monkeypatch.setattr(
        slurm_state, "job_states", lambda jobs, timeout: asked.append(1) or {"9_0": "PENDING"}
    )
    polled = status.Polled()
    assert [polled(["9_0"]) for _ in range(5)] == [{"9_0": "PENDING"}] * 5
    assert polled(["9_1"]) is None, "a job it has not asked about is left as its files say"
    assert len(asked) == 1


def test_a_thousand_cells_in_two_seconds(tmp_path: Path) -> None:
    for number in range(1000):
        folder = tmp_path / f"{number:016x}"
        folder.mkdir()
        (folder / "config.yaml").write_text("# a cell\nseed: 0\n")
        ledger.write_status(folder, "running", sync=False)
        body = {"host": "z", "machine": "elsewhere/x", "pid": 7}
        (folder / "claim").write_text(json.dumps(body))
        ledger.write_json(folder / "heartbeat", {"step": 1, "steps": 2}, sync=False)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "zolab", "status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "1000 cells: 1000 running"
    seconds = used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime
    assert seconds <= 2.0  # of the processor: other work here must not count


def test_cancel_marks_first_and_then_tells_slurm(runs: Path, capsys, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(slurm_state, "cancel", lambda jobs: told.append(jobs) or "")
    code = "import sys, time; from zolab import ledger\nledger.acquire(sys.argv[1]); time.sleep(60)"
    folder = runs / NAMES[2]
    (folder / "claim").unlink()
    local = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    try:
        while ledger.find_holder(folder) is None:
            time.sleep(0.02)
        assert cli.main(["cancel", "--runs", str(runs)]) == 0
        assert local.wait(10) == -15
    finally:
        local.kill()
    assert told == [["17_4"]]
    assert [ledger.read_status(runs / NAMES[i])["state"] for i in (1, 2)] == ["cancelled"] * 2
    assert ledger.state_of(runs / NAMES[0]) == "planned"
    assert capsys.readouterr().out == "cancelled 2 of 8 cells\n"
    ledger.write_status(folder, "preempted")  # as its process says when it has saved
    assert ledger.read_status(folder)["state"] == "cancelled"


def test_a_job_looks_up_its_cell_when_it_starts(tmp_path: Path, monkeypatch, capsys) -> None:
    """One that was cancelled, or whose folder is gone, leaves nothing behind; no pickle is read."""
    (tmp_path / ".jobs").mkdir()
    record = {"array": None, "cells": ["gone", "off"], "function": "no:such", "environment": {}}
    ledger.write_json(tmp_path / ".jobs" / "abc.json", record)
    (tmp_path / "off").mkdir()
    ledger.write_status(tmp_path / "off", "cancelled")
    for name in (ledger.JOB_ID_VARIABLE, ledger.RESTART_VARIABLE, ledger.LOG_VARIABLE):
        monkeypatch.setenv(name, "")  # what a member sets is undone after the test
    for index, said in enumerate(("gone, so there is nothing to run", "cancelled while its job")):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        assert member.main(tmp_path / ".jobs", "abc") == 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()
    assert ledger.read_status(tmp_path / "off")["state"] == "cancelled"
    assert member.main(tmp_path / ".jobs", "other") == 1


def test_retry_takes_the_stored_settings(tmp_path: Path, monkeypatch, capsys) -> None:
    given = []

    def launch(cells, launcher, sweep, labels):
        given.append(([cell["seed"] for cell in cells], launcher["kind"], sweep["retry"], labels))
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr("launchers.sweep.launch", launch)
    monkeypatch.setattr(slurm_state, "is_available", lambda: False)
    for seed, state in enumerate(("failed", "cancelled", "failed", "planned")):
        cell = compose.check(compose.compose([f"seed={seed}", f"run_root={tmp_path}"]))
        ledger.write_status(compose.write_cell(cell), state)
    assert cli.main(["retry", "--runs", str(tmp_path)]) == 0
    seeds, kind, retry, labels = given.pop()
    assert (sorted(seeds), kind, retry) == ([0, 2], "local", "all")
    assert labels[0].startswith("mezo, opt-prompt-2m on uci_sent, seed ")
    assert cli.main(["retry", "--state", "cancelled", "--runs", str(tmp_path)]) == 0
    assert given.pop()[0] == [1]
    for folder in tmp_path.glob("[0-9a-f]*"):
        ledger.write_json(folder / "result.json", {})
    assert cli.main(["retry", "--runs", str(tmp_path)]) == 0
    assert (given, capsys.readouterr().out[:16]) == ([], "nothing to run a")


def test_names_may_be_cut_short_but_not_ambiguous(runs: Path, capsys) -> None:
    assert cli.main(["cancel", "00", "--runs", str(runs)]) == 0
    assert ledger.state_of(runs / NAMES[0]) == "cancelled"
    (runs / "00ff").mkdir()
    (runs / "00ff" / "config.yaml").touch()
    for name, said in (("0", "fits 2 cells"), ("xyz", "no such cell")):
        assert cli.main(["cancel", name, "--runs", str(runs)]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="no such folder"):
        verbs.status([str(runs / "nowhere")])


def test_logs_are_printed_and_followed(runs: Path, capsys) -> None:
    folder = runs / NAMES[2]
    (runs / ".jobs" / "17_4_0_log.out").write_text("of the array\n")
    assert cli.main(["logs", NAMES[1][:3], "--runs", str(runs)]) == 0
    assert capsys.readouterr().out == "of the array\n"
    ledger.write_status(folder, "running", log=str(runs / "out"))
    code = (
        "import sys, time, pathlib; from zolab import ledger\n"
        "file = open(sys.argv[2], 'w')\n"
        "for i in range(3): print('line', i, file=file, flush=True); time.sleep(0.3)\n"
        "ledger.write_json(pathlib.Path(sys.argv[1]) / 'result.json', {})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(folder), str(runs / "out")])
    assert cli.main(["logs", "-f", NAMES[2], "--runs", str(runs)]) == 0
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\n"
    writer.wait()
    assert cli.main(["logs", NAMES[0], "--runs", str(runs)]) == 1


def test_clean_removes_only_what_nothing_reads(runs: Path, capsys) -> None:
    done, failed = runs / NAMES[3], runs / NAMES[4]
    for folder in (done, failed):
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "step.safetensors").write_bytes(b"x" * 100)
    old = {"array": "5", "cells": [done.name]}
    ledger.write_json(runs / ".jobs" / "old.json", old)
    for name in ("5_0_0_log.out", "17_4_0_log.out", f"{failed.name}-abc_0_log.out"):
        (runs / ".jobs" / name).write_text("words")
    ledger.write_json(runs / ".jobs" / "abc.json", {"array": "17", "cells": [NAMES[1]]})
    (runs / ".replaced" / "a-1").mkdir(parents=True)
    before = sorted(runs.rglob("*"))
    assert cli.main(["clean", str(runs)]) == 0
    assert sorted(runs.rglob("*")) == before
    assert capsys.readouterr().out.count(" MiB  ") == 4
    assert cli.main(["clean", str(runs), "--yes"]) == 0
    gone = {str(p.relative_to(runs)) for p in set(before) - set(runs.rglob("*"))}
    assert gone == {
        ".jobs/old.json", ".jobs/5_0_0_log.out", ".replaced/a-1",
        f"{done.name}/checkpoint", f"{done.name}/checkpoint/step.safetensors",
    }  # fmt: skip
