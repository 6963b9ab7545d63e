"""Shared filesystems: clocks that are off, slowness, frozen processes, folders that vanish."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_ledger import ELSEWHERE, age, make_cells, winners
from tests.test_resume import exact_rows, journal_text, prepare
from zolab import ledger
from zolab.journal import read_journal
from zolab.ledger import claims
from zolab.run import run_dir

FORK = multiprocessing.get_context("fork")
LONG = ("train.steps=300", "train.eval_every=300", "train.log_every=20")


def slowly(function: Any) -> Any:
    """The same after a pause, as on a file server under load."""

    def call(*arguments: Any, **options: Any) -> Any:
        time.sleep(random.uniform(0.0, 0.02))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_a_slow_folder_gives_each_cell_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    """Pauses between all steps of a claim and of a steal: every interleaving is possible."""
    cells = make_cells(tmp_path, 12)
    for cell in cells if stale else []:
        (cell / "claim").write_text(json.dumps(ELSEWHERE))
        age(cell / "claim", 1000)
    for name in ("link", "rename", "utime"):
        monkeypatch.setattr(os, name, slowly(getattr(os, name)))
    assert winners(cells, 8) == [cell.name for cell in cells]


def test_on_a_slow_folder_a_run_does_not_look_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = ledger.acquire(tmp_path)
    looks = []
    real = ledger.Claim.check

    def slow(self: ledger.Claim) -> None:
        looks.append(1)
        time.sleep(0.02)
        real(self)

    monkeypatch.setattr(ledger.Claim, "check", slow)
    begin = time.monotonic()
    while time.monotonic() - begin < 0.5:
        claim.glance()
    assert len(looks) == 1, "20 ms a look, a five-hundredth of the time: one look in ten seconds"


@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_a_node_whose_clock_is_off_neither_dies_nor_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Its times go into files as texts; what counts is the stamp of the file server."""
    real = time.time
    with monkeypatch.context() as there:
        there.setattr(time, "time", lambda: real() + 3600 * hours)
        there.setattr(claims, "_machine", lambda: "elsewhere/x")
        claim = ledger.acquire(tmp_path)
        claim.beat({"step": 1}, force=True)
        ledger.write_status(tmp_path, "running")
    assert ledger.state_of(tmp_path) == "running"
    with pytest.raises(ledger.Busy):
        ledger.acquire(tmp_path)
    with monkeypatch.context() as there:
        there.setattr(time, "time", lambda: real() + 3600 * hours)
        assert ledger.state_of(tmp_path) == "running"
        with pytest.raises(ledger.Busy):
            ledger.acquire(tmp_path)
    age(tmp_path / "claim", 200)
    age(tmp_path / "heartbeat", 200)
    ledger.acquire(tmp_path).check()


def run_and_tell(folder: Path, pipe: Any) -> None:
    try:
        run_dir(folder)
        pipe.send("done")
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def start_run(folder: Path, steps: int) -> tuple[Any, Any]:
    """A run in a process of its own, once it has taken some steps."""
    here, there = FORK.Pipe(duplex=False)
    runner = FORK.Process(target=run_and_tell, args=(folder, there))
    runner.start()
    deadline = time.monotonic() + 120
    while len(read_journal(folder)) < steps:
        assert time.monotonic() < deadline
        assert runner.is_alive()
        time.sleep(0.02)
    return runner, here


def test_a_frozen_process_wakes_after_its_claim_was_stolen(tmp_path: Path) -> None:
    """It finds out before it writes a row, and what it had in hand is dropped by the reader."""
    whole, cell = prepare(tmp_path / "whole", *LONG), prepare(tmp_path / "runs", *LONG)
    expected = run_dir(whole)
    frozen, pipe = start_run(cell, 5)
    os.kill(frozen.pid, signal.SIGSTOP)
    body = json.loads((cell / "claim").read_text())
    (cell / "claim").write_text(json.dumps({**body, "machine": "elsewhere/x"}))
    for name in ("claim", "heartbeat"):
        age(cell / name, 1000)
    result = run_dir(cell)
    assert (result["num_attempts"], result["weights_hash"]) == (2, expected["weights_hash"])
    before = {p: p.read_bytes() for p in cell.rglob("*") if p.is_file() and p.parent.name != "1"}
    os.kill(frozen.pid, signal.SIGCONT)
    assert pipe.poll(60)
    assert pipe.recv().startswith("Fenced")
    frozen.join()
    assert {p: p.read_bytes() for p in before} == before
    assert journal_text(cell) == journal_text(whole)
    assert exact_rows(cell) == exact_rows(whole)


def test_a_run_folder_deleted_under_way(tmp_path: Path) -> None:
    """The process ends without bringing half of it back; the same command begins anew."""
    cell = prepare(tmp_path, *LONG)
    runner, pipe = start_run(cell, 5)
    while cell.exists():
        shutil.rmtree(cell, ignore_errors=True)
    assert pipe.poll(60)
    assert pipe.recv().startswith("Fenced")
    runner.join()
    assert not cell.exists()
    assert ledger.read_status(cell) == {}
    assert prepare(tmp_path, *LONG) == cell


def test_another_version_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another commit goes on, and is on record."""
    from zolab import environment, process

    cell = prepare(tmp_path, "train.steps=6")
    process.ask_to_stop("a test")
    with pytest.raises(process.Preempted):
        run_dir(cell)
    process.ask_to_stop(None)
    monkeypatch.setattr(environment, "_code", lambda: {"commit": "another", "diff": ""})
    result = run_dir(cell)
    assert (result["steps"], result["num_attempts"], result["continued"]) == (6, 2, [])
    codes = [ledger.read_json(cell / "attempts" / str(n) / "env.json")["code"] for n in (1, 2)]
    assert codes[0] != codes[1] == {"commit": "another", "diff": ""}


def test_a_full_disk_fails_a_cell_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be put on record: the old status stands, and the claim is given back."""
    cell = prepare(tmp_path, "train.steps=6")
    ledger.write_status(cell, "submitted", job_id="7_1")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as now:
        now.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_dir(cell)
    assert ledger.read_status(cell)["state"] == "submitted"
    assert ledger.find_holder(cell) is None
    assert run_dir(cell)["steps"] == 6
