from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zolab import ledger
from zolab.ledger import files

CONTEXT = multiprocessing.get_context("fork")
ELSEWHERE = {"token": "t", "host": "elsewhere", "machine": "elsewhere/x", "pid": 7, "start": "1"}


def contend(cells: list[Path], start: float, wins) -> None:
    """Try to claim every cell once; note the ones won and never release them."""
    time.sleep(max(0.0, start - time.time()))
    for cell in cells:
        try:
            ledger.acquire(cell)
        except ledger.Busy:
            continue
        wins.put(cell.name)
    wins.close()
    wins.join_thread()
    signal.pause()  # a claim counts while its process lives


def winners(cells: list[Path], processes: int) -> list[str]:
    wins = CONTEXT.Queue()
    start = time.time() + 0.2
    workers = [CONTEXT.Process(target=contend, args=(cells, start, wins)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    won = []
    try:
        deadline = time.time() + 30
        quiet = time.time()
        while time.time() < deadline and time.time() - quiet < 1.0:
            if wins.empty():
                time.sleep(0.02)
                continue
            won.append(wins.get())
            quiet = time.time()
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return sorted(won)


def make_cells(root: Path, count: int) -> list[Path]:
    cells = [root / f"{i:03d}" for i in range(count)]
    for cell in cells:
        cell.mkdir(parents=True)
    return cells


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def dead_claim(cell: Path) -> None:
    """Leave the claim of a process of this machine that has ended."""
    code = "import sys; from zolab import ledger; ledger.acquire(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(cell)], check=True)


@pytest.mark.parametrize("stale", [False, True], ids=["free", "stale"])
def test_eight_processes_win_each_cell_exactly_once(tmp_path, stale):
    cells = make_cells(tmp_path, 100)
    if stale:
        dead_claim(cells[0])
        for cell in cells[1:]:
            (cell / "claim").write_bytes((cells[0] / "claim").read_bytes())
    assert winners(cells, 8) == [cell.name for cell in cells]
    assert [p.name for cell in cells for p in cell.iterdir()] == ["claim"] * 100


def test_busy_names_the_holder_and_survives_pickling(tmp_path):
    claim = ledger.acquire(tmp_path)
    with pytest.raises(ledger.Busy, match=f"held by process {os.getpid()}") as caught:
        ledger.acquire(tmp_path)
    assert caught.value.pid == os.getpid()
    assert caught.value.age < 5
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.host, str(again)) == (caught.value.host, str(caught.value))
    claim.release()
    ledger.acquire(tmp_path).release()


def test_dead_process_of_this_machine_is_replaced_at_once(tmp_path):
    dead_claim(tmp_path)
    assert ledger.find_holder(tmp_path).stale
    ledger.acquire(tmp_path).check()


def test_reused_process_id_is_not_taken_for_the_holder(tmp_path):
    ledger.acquire(tmp_path)
    body = json.loads((tmp_path / "claim").read_text())
    (tmp_path / "claim").write_text(json.dumps({**body, "start": "1"}))
    ledger.acquire(tmp_path).check()


def test_silent_but_living_process_of_this_machine_keeps_its_claim(tmp_path):
    claim = ledger.acquire(tmp_path)
    age(tmp_path / "claim", 10_000)
    with pytest.raises(ledger.Busy):
        ledger.acquire(tmp_path)
    claim.check()


def test_claim_from_elsewhere_lives_as_long_as_its_lease(tmp_path):
    (tmp_path / "claim").write_text(json.dumps(ELSEWHERE))
    age(tmp_path / "claim", 1000)
    ledger.write_json(tmp_path / "heartbeat", {})
    age(tmp_path / "heartbeat", 100)
    with pytest.raises(ledger.Busy, match="elsewhere") as caught:
        ledger.acquire(tmp_path)
    assert caught.value.age == pytest.approx(100, abs=5)
    assert ledger.state_of(tmp_path) == "running"
    age(tmp_path / "heartbeat", 181)
    assert ledger.state_of(tmp_path) == "lost"
    ledger.acquire(tmp_path).check()


def test_lease_is_measured_by_the_clock_of_the_filesystem(tmp_path, monkeypatch):
    (tmp_path / "claim").write_text(json.dumps(ELSEWHERE))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    with pytest.raises(ledger.Busy):
        ledger.acquire(tmp_path)
    assert ledger.state_of(tmp_path) == "running"


def test_unreadable_claim_is_respected_for_one_lease(tmp_path):
    (tmp_path / "claim").write_bytes(b'{"tok')
    with pytest.raises(ledger.Busy, match="unknown"):
        ledger.acquire(tmp_path)
    age(tmp_path / "claim", 200)
    ledger.acquire(tmp_path).check()


def test_fenced_process_notices_and_does_no_harm(tmp_path):
    frozen = ledger.acquire(tmp_path, interval=0)
    assert frozen.beat({"step": 1})
    body = json.loads((tmp_path / "claim").read_text())
    body.update(machine="elsewhere/x", host="elsewhere")
    (tmp_path / "claim").write_text(json.dumps(body))
    age(tmp_path / "claim", 1000)
    age(tmp_path / "heartbeat", 1000)
    thief = ledger.acquire(tmp_path)
    for act in (frozen.check, frozen.beat):
        with pytest.raises(ledger.Fenced, match=f"process {os.getpid()}"):
            act()
    frozen.release()
    thief.check()
    assert ledger.read_heartbeat(tmp_path)["step"] == 1


def test_check_is_fenced_when_the_directory_goes_away(tmp_path):
    cell = tmp_path / "cell"
    cell.mkdir()
    claim = ledger.acquire(cell)
    (cell / "claim").unlink()
    cell.rmdir()
    with pytest.raises(ledger.Fenced, match="nobody"):
        claim.check()
    with pytest.raises(OSError, match="No such file"):
        ledger.acquire(cell)


def test_a_lock_left_by_a_dead_thief_blocks_nobody(tmp_path):
    dead_claim(tmp_path)
    (tmp_path / ".steal").write_bytes((tmp_path / "claim").read_bytes())
    ledger.acquire(tmp_path).check()


def test_a_claim_moved_by_mistake_is_put_back(tmp_path):
    claim = ledger.acquire(tmp_path)
    assert not files.remove_if(tmp_path / "claim", b"what was judged stale")
    claim.check()
    assert [p.name for p in tmp_path.iterdir()] == ["claim"]


def test_beat_is_limited_in_rate(tmp_path):
    with ledger.acquire(tmp_path, interval=60) as claim:
        assert claim.beat({"step": 1, "loss": float("nan")})
        assert not claim.beat({"step": 2})
        assert ledger.read_heartbeat(tmp_path)["step"] == 1
        assert claim.beat({"step": 3}, force=True)
        found = ledger.read_heartbeat(tmp_path)
        assert (found["step"], found["pid"], found["state"]) == (3, os.getpid(), "running")
    assert not (tmp_path / "claim").exists()


def test_check_is_cheap(tmp_path):
    claim = ledger.acquire(tmp_path)
    start = time.perf_counter()
    for _ in range(200):
        claim.check()
    assert (time.perf_counter() - start) / 200 < 2e-3


def test_states(tmp_path):
    assert ledger.state_of(tmp_path) == "planned"
    for state in ("submitted", "failed", "preempted", "cancelled"):
        ledger.write_status(tmp_path, state)
        assert ledger.state_of(tmp_path) == state
    ledger.write_status(tmp_path, "done")
    assert ledger.state_of(tmp_path) == "lost", "done without a result is not done"
    claim = ledger.acquire(tmp_path)
    ledger.write_status(tmp_path, "running")
    assert ledger.state_of(tmp_path) == "running"
    claim.release()
    assert ledger.state_of(tmp_path) == "lost"
    ledger.write_json(tmp_path / "result.json", {})
    assert ledger.state_of(tmp_path) == "done"
    with pytest.raises(ValueError, match="sleeping"):
        ledger.write_status(tmp_path, "sleeping")


def test_status_keeps_the_job_and_drops_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv(ledger.JOB_ID_VARIABLE, "12_3")
    ledger.write_status(tmp_path, "running", attempt=2)
    monkeypatch.delenv(ledger.JOB_ID_VARIABLE)
    ledger.write_status(tmp_path, "failed", error="boom")
    status = ledger.read_status(tmp_path)
    assert (status["job_id"], status["attempt"], status["error"]) == ("12_3", 2, "boom")
    ledger.write_status(tmp_path, "running")
    status = ledger.read_status(tmp_path)
    assert (status["job_id"], status["attempt"], status["error"]) == (None, 2, None)


@pytest.mark.parametrize("text", [b"", b'{"state": "fai', b"[1]", b"\xff\xfe"])
def test_half_written_status_is_no_status(tmp_path, text):
    (tmp_path / "status.json").write_bytes(text)
    assert ledger.read_status(tmp_path) == {}
    assert ledger.state_of(tmp_path) == "planned"
    ledger.write_status(tmp_path, "failed")
    assert ledger.state_of(tmp_path) == "failed"


def test_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    ledger.write_json(tmp_path / "x.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.write_json(tmp_path / "x.json", {"a": 2})
    assert ledger.read_json(tmp_path / "x.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_leftovers_of_killed_writers_are_swept(tmp_path):
    for name, seconds in ((".status.json-1.tmp", 1000), (".status.json-2.tmp", 0)):
        (tmp_path / name).touch()
        age(tmp_path / name, seconds)
    ledger.acquire(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".status.json-2.tmp", "claim"]


def test_what_was_left_before_the_claim_goes_with_the_end_of_the_run(tmp_path):
    """Even within the lease; what is written meanwhile, by whomever, stays."""
    old, fresh = tmp_path / ".status.json-old.tmp", tmp_path / ".status.json-fresh.tmp"
    old.touch()
    with ledger.acquire(tmp_path) as claim:
        assert old.exists(), "its writer may still be at it"
        age(old, 1.0)
        fresh.touch()
        claim.tidy()
        assert (old.exists(), fresh.exists()) == (False, True)


def test_attempts_are_numbered(tmp_path):
    assert [ledger.next_attempt(tmp_path).name for _ in range(3)] == ["1", "2", "3"]
    assert (tmp_path / "attempts" / "3").is_dir()


def test_status_of_a_thousand_cells_is_quick(tmp_path):
    cells = make_cells(tmp_path, 1000)
    for cell in cells:
        (cell / "claim").write_text(json.dumps(ELSEWHERE))
    now = ledger.filesystem_time(tmp_path)
    start = time.perf_counter()
    assert {ledger.state_of(cell, now=now) for cell in cells} == {"running"}
    assert time.perf_counter() - start < 2.0
