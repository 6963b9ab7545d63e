"""The cells of a runs folder as their files tell them, with one question to SLURM at most."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launchers import slurm_state
from launchers.display import clock
from launchers.plan import Entry
from launchers.submission import Jobs
from launchers.watch import POLL_SECONDS, JobStates, settle
from zolab import ledger
from zolab.compose import title_of
from zolab.errors import UserError, nearest

#: A controller that does not answer within this is not waited for: files say enough.
_ANSWER_SECONDS = 5.0
#: States in which nothing happens any more by itself.
ENDED = ("done", "failed", "cancelled")


@dataclass
class Row:
    """One cell for people and programs.

    Attributes:
        run_id, state, title: what it is.
        job, host, attempt: where it runs or ran last; None if it never did.
        step, steps: how far it is.
        forwards_per_second, eta_seconds: pace of a running cell.
        metrics: of the last evaluation, or of the best step of a finished cell.
        seconds: wall time of a finished cell.
        error: why it failed or stopped.
    """

    run_id: str
    state: str
    title: str
    job: str | None = None
    host: str | None = None
    attempt: int | None = None
    step: int | None = None
    steps: int | None = None
    forwards_per_second: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, Any] | None = None
    seconds: float | None = None
    error: str | None = None


def folders_in(root: Path) -> list[Path]:
    """The run directories of a runs folder, by name.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        what = "a file, expected a folder of runs" if root.exists() else "no such folder"
        raise UserError(f"RUNS = {str(root)!r}: {what}")
    with os.scandir(root) as found:
        names = sorted(item.name for item in found if not item.name.startswith("."))
    return [root / name for name in names if (root / name / "config.yaml").exists()]


def entries_of(
    folders: Sequence[Path], job_states: JobStates | None = None, ask: bool = True
) -> list[Entry]:
    """The cells of run directories with their states; their configs are not read.

    Args:
        folders: run directories of one runs folder.
        job_states: asks SLURM; `slurm_state.job_states` if None.
        ask: False: by the files alone.
    """
    now = ledger.filesystem_time(folders[0].parent) if folders else 0.0
    entries = []
    for folder in folders:
        entry = Entry(folder.name, folder.absolute(), {}, "", ledger.state_of(folder, now=now))
        entry.error = ledger.read_status(folder).get("error")
        entries.append(entry)
    settle(entries, job_states or (_quick_answer if ask else lambda jobs: None))
    return entries


def _quick_answer(jobs: Iterable[str]) -> dict[str, str] | None:
    if not slurm_state.is_available():
        return None
    return slurm_state.job_states(jobs, _ANSWER_SECONDS)


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """What there is to say about each cell."""
    jobs = Jobs()
    return [_row(entry, jobs) for entry in entries]


def _row(entry: Entry, jobs: Jobs) -> Row:
    status = ledger.read_status(entry.run_dir)
    row = Row(entry.run_id, entry.state, title_of(entry.run_dir), jobs.of(entry))
    row.host, row.attempt = status.get("host"), status.get("attempt")
    if entry.state == "done":
        result = ledger.read_json(entry.run_dir / "result.json")
        row.step = row.steps = result.get("steps")
        row.seconds, row.metrics = result.get("wall_seconds"), result.get("best")
        return row
    row.error = entry.error
    beat = ledger.read_heartbeat(entry.run_dir)
    row.step, row.steps, row.metrics = beat.get("step"), beat.get("steps"), beat.get("metrics")
    if entry.state == "running":
        row.forwards_per_second = _finite(beat.get("forwards_per_second"))
        row.eta_seconds = _finite(beat.get("eta_seconds"))
    return row


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def sweep_eta(rows: Sequence[Row]) -> float | None:
    """Seconds until all cells that run or wait are done, at the present number of running ones."""
    running = [row for row in rows if row.state == "running"]
    waiting = sum(row.state in ("submitted", "planned", "preempted", "lost") for row in rows)
    known = [row.seconds for row in rows if row.state == "done" and row.seconds]
    left = [row.eta_seconds for row in running if row.eta_seconds is not None]
    if known:
        cost = sum(known) / len(known)
    else:
        whole = [r.eta_seconds / (1 - r.step / r.steps) for r in running if _share_known(r)]
        cost = sum(whole) / len(whole) if whole else None
    if not running or (waiting and cost is None) or not (left or waiting):
        return None
    total = sum(left) + (waiting + len(running) - len(left)) * (cost or 0.0)
    return max(max(left, default=0.0), total / len(running))


def _share_known(row: Row) -> bool:
    return bool(row.eta_seconds and row.step and row.steps and row.step < row.steps)


def summary(rows: Sequence[Row]) -> str:
    """One line: cells by state, and when the sweep will be over."""
    counts = Counter(row.state for row in rows)
    parts = ", ".join(f"{counts[state]} {state}" for state in ledger.STATES if counts[state])
    eta = sweep_eta(rows)
    left = f"; about {clock(eta)} left" if eta is not None else ""
    return f"{len(rows)} cells" + (f": {parts}" if parts else "") + left


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The same for programs."""
    counts = Counter(row.state for row in rows)
    return {
        "time": time.time(),
        "counts": {state: counts[state] for state in ledger.STATES},
        "eta_seconds": sweep_eta(rows),
        "cells": [asdict(row) for row in rows],
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table, one a cell, with the error below one that has none to show."""
    cells = [("run", "state", "job", "node", "step", "fwd/s", "eta", "last", "what")]
    cells += [_texts(row) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]) - 1)]
    lines = []
    for texts, row in zip(cells, [None, *rows], strict=True):
        columns = (text.ljust(width) for text, width in zip(texts, widths, strict=False))
        lines.append("  ".join([*columns, texts[-1]]).rstrip())
        if row is not None and row.error and row.state not in ("running", "done"):
            lines.append(f"    {row.error}")
    return lines


def _texts(row: Row) -> tuple[str, ...]:
    done = row.state == "done"
    step = "" if row.step is None else f"{row.step}" if done else f"{row.step}/{row.steps}"
    pace = f"{row.forwards_per_second:.1f}" if row.forwards_per_second else ""
    eta = clock(row.eta_seconds) if row.eta_seconds is not None else ""
    if done and row.seconds:
        eta = f"({clock(row.seconds)})"
    last = ""
    for name in ("test/accuracy", "dev/accuracy", "dev/loss"):
        value = (row.metrics or {}).get(name)
        if isinstance(value, float):
            last = f"{name} {value:.3f}"
            break
    return (row.run_id, row.state, row.job or "", row.host or "", step, pace, eta, last, row.title)


class Polled:
    """Answers of SLURM that are asked for at most once in `POLL_SECONDS`."""

    def __init__(self) -> None:
        self._asked = -math.inf
        self._known: dict[str, str] | None = None

    def __call__(self, jobs: Iterable[str]) -> dict[str, str] | None:
        """States of jobs as of the last question; None before SLURM answered one."""
        if time.monotonic() - self._asked >= POLL_SECONDS:
            self._asked = time.monotonic()
            self._known = _quick_answer(jobs)
            return self._known
        if self._known is None or not set(jobs) <= set(self._known):
            return None  # a job that is new since then: by the files, until the next question
        return self._known


def choose(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The run directories whose names begin with one of `names`; all if there are none.

    Raises:
        UserError: a name fits none, or several.
    """
    if not names:
        return list(folders)
    chosen = []
    for name in names:
        fits = [folder for folder in folders if folder.name.startswith(name)]
        if len(fits) != 1:
            known = [folder.name for folder in folders]
            what = f"fits {len(fits)} cells" if fits else f"no such cell{nearest(name, known)}"
            raise UserError(f"CELL = {name!r}: {what}")
        chosen.append(fits[0])
    return chosen
