"""Submissions on record: which cells an array holds, written before SLURM is asked for it.

A launcher that is killed in the middle leaves a record without the array's id; the array is then
found by its name, or was never made. Members look up their cell by their index, so nothing has to
be written after the submission for them to start.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launchers import slurm_state
from launchers.job import JOBS
from launchers.plan import Entry
from zolab import ledger

#: A call of sbatch outlives the launcher that was killed while it waited for it (seconds).
SETTLING_SECONDS = 3.0
#: A launcher holds the lock of a runs folder for seconds; one that is silent for so long is dead.
LOCK_SECONDS = 60.0


def job_name(token: str) -> str:
    """The name of an array, by which it is found again."""
    return f"zolab-{token}"


def new_record(jobs: Path, entries: Sequence[Entry], settings: Mapping[str, Any]) -> str:
    """Write down what is about to be submitted; returns the token that names it.

    Args:
        jobs: folder for submissions.
        entries: the cells, in the order of the array's members.
        settings: what the members must know: "function" and "environment".
    """
    token = uuid.uuid4().hex[:12]
    names = [entry.run_dir.name for entry in entries]
    ledger.write_json(jobs / f"{token}.json", {"array": None, "cells": names, **settings})
    return token


def set_array(jobs: Path, token: str, array: str) -> None:
    """Complete a record once SLURM gave the array's id."""
    ledger.write_json(jobs / f"{token}.json", {**read_record(jobs, token), "array": array})


def read_record(jobs: Path, token: str) -> dict[str, Any]:
    """A record; empty if it is not there."""
    return ledger.read_json(jobs / f"{token}.json")


class Jobs:
    """The job of each cell: what its process wrote, else what the record of its submission says."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Path, str], str | None] = {}

    def of(self, entry: Entry) -> str | None:
        """Id of the job a cell was last given to; None if it has none or it is not known yet."""
        status = ledger.read_status(entry.run_dir)
        if status.get("job_id"):
            return str(status["job_id"])
        found = status.get("submission")
        if not (isinstance(found, list) and len(found) == 2):
            return None
        array = self._array(entry.run_dir.parent / JOBS, str(found[0]))
        return f"{array}_{found[1]}" if array else None

    def _array(self, jobs: Path, token: str) -> str | None:
        if self._arrays.get((jobs, token)) is None:
            record = read_record(jobs, token)
            array = record.get("array")
            if record and not array:
                array = slurm_state.array_named(job_name(token))
                if array:
                    set_array(jobs, token, array)
            self._arrays[jobs, token] = array
        return self._arrays[jobs, token]


def is_settling(entry: Entry) -> bool:
    """Whether a launcher may be submitting this cell at this moment."""
    found = ledger.read_status(entry.run_dir).get("submission")
    jobs = entry.run_dir.parent / JOBS
    if not (isinstance(found, list) and found) or not (jobs / f"{found[0]}.json").exists():
        return False
    return _is_held(jobs) or _seconds_old(entry) < SETTLING_SECONDS


def wait_for_orphans(entries: Iterable[Entry]) -> bool:
    """Wait out what a launcher that died may have left under way; whether there was anything.

    What had not settled when the plan was made counts, even if it has by now: the plan is old.
    """
    jobs = Jobs()
    left = [entry for entry in entries if entry.state == "submitted" and not jobs.of(entry)]
    left = [entry for entry in left if not _is_held(entry.run_dir.parent / JOBS)]
    if left:
        age = min(_seconds_old(entry) for entry in left)
        time.sleep(max(0.0, SETTLING_SECONDS + 0.2 - age))  # file clocks tick coarsely
    return bool(left)


def _is_held(jobs: Path) -> bool:
    """Whether another launcher that lives has the right to submit."""
    holder = ledger.find_holder(jobs, LOCK_SECONDS)
    ours = holder is not None and holder.pid == os.getpid() and holder.alive is True
    return holder is not None and not holder.stale and not ours


def _seconds_old(entry: Entry) -> float:
    written = (entry.run_dir / "status.json").stat().st_mtime
    return ledger.filesystem_time(entry.run_dir.parent / JOBS) - written


@contextlib.contextmanager
def alone(roots: Iterable[Path]) -> Iterator[None]:
    """Hold the right to submit cells of these runs folders; waits for launchers that have it.

    Without it, two people who start the same sweep in one second would queue each cell twice.
    """
    with contextlib.ExitStack() as held:
        for root in sorted(set(roots)):
            (root / JOBS).mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    claim = ledger.acquire(root / JOBS, LOCK_SECONDS, interval=5.0, patient=False)
                    break
                except ledger.Busy:
                    time.sleep(0.2)
            held.enter_context(claim)
            held.enter_context(claim.keep_alive())
        yield
