"""A run asked to stop stops between two steps, saved, and goes on to the same end."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_resume import CELLS, exact_rows, journal_text, prepare
from zolab import ledger, process
from zolab.progress import Progress
from zolab.run import run_dir


def asks_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """A real SIGTERM in the middle of the loop at each of these steps, once."""
    real = Progress.step

    def step(self: Progress, number: int, loss: float, num_forwards: int) -> None:
        if number in steps:
            steps.remove(number)
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, number, loss, num_forwards)

    monkeypatch.setattr(Progress, "step", step)


@pytest.mark.parametrize("name", ["in_place", "momentum", "adamw"])
def test_preempted_three_times_equals_undisturbed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [o for o in CELLS[name] if "checkpoint_minutes" not in o]
    whole = prepare(tmp_path / "whole", *options)
    broken = prepare(tmp_path / "broken", *options)
    expected = run_dir(whole)
    asks_at(monkeypatch, {4, 9, 17})  # a row is due at none, both, none of them
    for at in (4, 9, 17):
        with (
            process.stop_signals_caught(),
            pytest.raises(process.Preempted, match=f"stopped by SIGTERM after step {at} of 24"),
        ):
            run_dir(broken)
        status = ledger.read_status(broken)
        assert (status["state"], ledger.find_holder(broken)) == ("preempted", None)
        assert [p.name for p in (broken / "checkpoint").glob("step*")] == [
            f"step-{at:09d}.safetensors"
        ]
    got = run_dir(broken)
    assert got["weights_hash"] == expected["weights_hash"]
    assert (got["best"], got["num_attempts"]) == (expected["best"], 4)
    assert exact_rows(broken) == exact_rows(whole)
    assert journal_text(broken) == journal_text(whole)


def test_asked_after_the_last_step_it_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path, "train.steps=3")
    asks_at(monkeypatch, {3})
    with process.stop_signals_caught():
        assert run_dir(folder)["steps"] == 3


def test_the_heart_beats_while_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zolab import begin

    folder = prepare(tmp_path, "train.steps=1")
    beaten = threading.Event()
    real_load, real_beat = begin.load_origin, ledger.Claim.beat

    def beat(self: ledger.Claim, *arguments: object, **options: object) -> bool:
        if threading.current_thread().name == "heartbeat":
            beaten.set()
        return real_beat(self, *arguments, **options)

    def slow(*arguments: object, **options: object) -> object:
        assert beaten.wait(30)
        return real_load(*arguments, **options)

    monkeypatch.setenv(ledger.BEAT_VARIABLE, "0.05")
    monkeypatch.setattr(ledger.Claim, "beat", beat)
    monkeypatch.setattr(begin, "load_origin", slow)
    run_dir(folder)
    assert ledger.read_heartbeat(folder)["steps"] == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ValueError("out of memory"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_errors_about_memory_say_so(error: Exception, said: bool) -> None:
    text = process.describe(error)
    assert text.startswith("out of memory, this process held ") is said
    assert type(error).__name__ in text


@pytest.mark.parametrize("by", ["torch", "numpy"])
def test_out_of_memory_is_failed_with_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Under a limit of the address space, in a process of its own."""
    from zolab import run

    def too_much(job: object) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
        if by == "torch":
            torch.ones(2**30, dtype=torch.uint8)
        else:
            np.ones(2**30, dtype=np.uint8)

    monkeypatch.setattr(run, "train", too_much)
    folder = prepare(tmp_path, "train.steps=1")
    child = multiprocessing.get_context("fork").Process(target=run_dir, args=(folder,))
    child.start()
    child.join(120)
    assert child.exitcode == 1
    status = ledger.read_status(folder)
    assert status["state"] == "failed"
    assert "out of memory, this process held" in status["error"]


def test_an_environment_names_the_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.SIGNALS_VARIABLE, "SIGUSR1")
    before = signal.getsignal(signal.SIGTERM)
    with process.stop_signals_caught():
        assert signal.getsignal(signal.SIGTERM) is before
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while process.stop_asked() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.stop_asked() == "SIGUSR1"
    assert process.stop_asked() is None


def test_a_requeued_job_takes_its_old_claim_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a node failure: the claim is from another machine and fresh, but of this very job."""
    body = {"host": "z1", "machine": "elsewhere/x", "pid": 7, "start": "1"}
    (tmp_path / "claim").write_text(json.dumps({**body, "job": "8_3", "restart": 0}))
    monkeypatch.setenv(ledger.JOB_ID_VARIABLE, "8_3")
    monkeypatch.setenv(ledger.RESTART_VARIABLE, "0")
    with pytest.raises(ledger.Busy):
        ledger.acquire(tmp_path, patient=False)
    monkeypatch.setenv(ledger.RESTART_VARIABLE, "1")
    ledger.acquire(tmp_path).check()


def test_a_job_waits_for_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's claim, still within its lease: alive if it beats, else taken at the end."""
    body = {"host": "z1", "machine": "elsewhere/x", "pid": 7, "start": "1", "lease": 1.5}
    (tmp_path / "claim").write_text(json.dumps(body))
    monkeypatch.setenv(ledger.JOB_ID_VARIABLE, "9")
    threading.Timer(0.5, lambda: ledger.write_json(tmp_path / "heartbeat", {})).start()
    with pytest.raises(ledger.Busy):
        ledger.acquire(tmp_path, lease=1.5)
    ledger.acquire(tmp_path, lease=1.5).check()
