"""The present state of a folder of runs, read again only where files have changed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from analysis.health import eps_of, health_of
from analysis.reading.cache import Cache
from analysis.reading.folders import json_object, read_cached, run_folders
from analysis.reading.log import EMPTY, Unreadable, Watch
from analysis.runs import Runs, describe
from analysis.variants import labels
from zolab.errors import UserError
from zolab.ledger import state_of
from zolab.tracking.health import Health

_FILES = ("config.yaml", "metrics.jsonl", "status.json", "result.json")
#: States a run does not leave by itself.
_FINAL = ("done", "unreadable")
_HEALTH_ROWS = 200
#: Seconds to the first view of what has been read, during the first look at a folder.
_PARTLY = 0.5


@dataclass(frozen=True)
class Cell:
    """One run as it stands.

    Attributes:
        run_id: its id.
        folder: its folder.
        about: its row of `Runs.runs`; only run_id where the config cannot be read.
        log: its rows so far.
        state: one of `ledger.STATES`, or "unreadable".
        step: updates done, by the last row or heartbeat.
        steps: updates planned.
        eta: seconds left, None when not running.
        error: why it failed or cannot be read, one line; else "".
        metric: key of the score, e.g. "dev/accuracy"; "" before the first evaluation.
        score: last value of that key.
        best: best value of that key.
        health: see `zolab.tracking.health`; None for other than zeroth-order runs.
        method: optimizer with its mask and the settings in which it differs from others of that
            name here, without the learning rate.
    """

    run_id: str
    folder: Path
    about: dict[str, Any]
    log: pl.DataFrame
    state: str
    step: int = 0
    steps: int = 0
    eta: float | None = None
    error: str = ""
    metric: str = ""
    score: float | None = None
    best: float | None = None
    health: Health | None = None
    method: str = "?"

    @property
    def diverged(self) -> bool:
        """Whether its loss has risen or is not finite."""
        return self.health is not None and self.health.diverged


@dataclass(frozen=True)
class Snapshot:
    """All runs at one moment.

    Attributes:
        cells: run_id to cell, by run_id.
        version: raised whenever anything has changed.
        unread: runs that are there but have not been read yet.
    """

    cells: dict[str, Cell] = field(default_factory=dict)
    version: int = 0
    unread: int = 0

    def runs(self) -> Runs:
        """The same as a reader of folders gives; unreadable runs are left out.

        Raises:
            UserError: no run can be read.
        """
        known = [cell for cell in self.cells.values() if len(cell.about) > 1]
        if not known:
            raise UserError("no readable run yet")
        order: dict[str, None] = {}
        for cell in known:
            order |= dict.fromkeys(cell.about)
        core = [key for key in order if not key.startswith("config.")]
        numeric = {"sparsity_share": pl.Float64, "lr": pl.Float64}
        numeric |= dict.fromkeys(("seed", "train_steps", "last_step"), pl.Int64)
        names = core + sorted(order.keys() - set(core))
        schema = {key: numeric.get(key, pl.String) for key in names}
        table = pl.DataFrame([cell.about for cell in known], schema=schema)
        return Runs(table, {cell.run_id: cell.log for cell in known}, (), "local")


class Live:
    """Keeps a snapshot up to date; safe to ask from several threads.

    While one thread looks, the others get what is known so far: the first look at a large folder
    takes seconds, and a page that waits for it would stay empty for as long.

    Args:
        root: folder of run folders; may be empty at first.
        every: seconds for which a snapshot stays good.
    """

    def __init__(self, root: Path, every: float = 2.0) -> None:
        self.root = root
        self.every = every
        self._cache = Cache(root)
        self._lock = threading.Lock()
        self._marks: dict[str, tuple[Any, ...]] = {}
        self._snapshot = Snapshot()
        self._looked = 0.0

    def snapshot(self, watch: Watch | None = None) -> Snapshot:
        """The runs as they are now, or were a moment ago."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() - self._looked >= self.every:
                    self._refresh(watch)
                    self._looked = time.monotonic()
            finally:
                self._lock.release()
        return self._snapshot

    def _refresh(self, watch: Watch | None) -> None:
        old, begun = self._snapshot, time.monotonic()
        due = begun + _PARTLY
        folders = [folder for folder in run_folders(self.root) if folder != self.root]
        cells: dict[str, Cell] = {}
        marks: dict[str, tuple[Any, ...]] = {}
        for number, folder in enumerate(folders, start=1):
            name = folder.name
            cell, mark = old.cells.get(name), _mark(folder)
            if cell is None or mark != self._marks.get(name):
                cell = _read(folder, self._cache)
            elif cell.state not in _FINAL:
                cell = _tick(cell)
            cells[name], marks[name] = cell, mark
            if watch is not None:
                watch(number, len(folders))
            if not old.cells and time.monotonic() > due:
                unread = len(folders) - number
                self._snapshot = Snapshot(_named(cells), self._snapshot.version + 1, unread)
                # Each view costs as much as all runs so far: a few are enough.
                due = time.monotonic() + 0.5 * (time.monotonic() - begun)
        if any(cell.about is not _about(old, name) for name, cell in cells.items()):
            cells = _named(cells)
        same = cells.keys() == old.cells.keys() and all(
            cells[name] is old.cells[name] for name in cells
        )
        self._marks = marks
        if not same:
            self._snapshot = Snapshot(cells, self._snapshot.version + 1)


def _named(cells: dict[str, Cell]) -> dict[str, Cell]:
    """The cells with methods told apart from all others there."""
    names = labels([cell.about for cell in cells.values() if len(cell.about) > 1])
    return {
        name: cell if names.get(name, "?") == cell.method else replace(cell, method=names[name])
        for name, cell in cells.items()
    }


def _about(snapshot: Snapshot, name: str) -> dict[str, Any] | None:
    cell = snapshot.cells.get(name)
    return None if cell is None else cell.about


def _mark(folder: Path) -> tuple[Any, ...]:
    facts: list[Any] = []
    for name in _FILES:
        try:
            stat = (folder / name).stat()
            facts.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            facts.append(None)
    return tuple(facts)


def _read(folder: Path, cache: Cache) -> Cell:
    try:
        log = read_cached(folder, cache)
        about = describe(log)
    except (Unreadable, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        about = {"run_id": folder.name}
        return Cell(folder.name, folder, about, EMPTY, "unreadable", error=reason)
    metric = _metric(log.table)
    values = log.table[metric].drop_nulls().drop_nans() if metric else pl.Series([], dtype=float)
    health = None
    if any(name.startswith("zo/") for name in log.table.columns):
        dtype = about.get("config.model.dtype") or "float32"
        health = health_of(log.table, eps_of(about), dtype, _HEALTH_ROWS)
    best = values.min() if metric == "dev/loss" else values.max()
    status = json_object(folder / "status.json")
    cell = Cell(
        run_id=folder.name,
        folder=folder,
        about=about,
        log=log.table,
        state="planned",
        step=about["last_step"] or 0,
        steps=about["train_steps"],
        error=str(status.get("error") or ""),
        metric=metric,
        score=float(values[-1]) if values.len() else None,
        best=None if best is None else float(best),
        health=health,
    )
    return _tick(cell)


def _tick(cell: Cell) -> Cell:
    """The cell with what changes without its log: state and heartbeat; itself if nothing did."""
    try:
        state = state_of(cell.folder, now=time.time())
    except OSError:
        state = "unreadable"
    beat = json_object(cell.folder / "heartbeat") if state == "running" else {}
    eta = beat.get("eta_seconds")
    now = {
        "state": state,
        "step": max(cell.step, int(beat.get("step") or 0)),
        "eta": float(eta) if isinstance(eta, int | float) else None,
    }
    if all(getattr(cell, key) == value for key, value in now.items()):
        return cell
    return replace(cell, **now)


def _metric(log: pl.DataFrame) -> str:
    names = [name for name in log.columns if name.startswith("dev/")]
    if "dev/accuracy" in names:
        return "dev/accuracy"
    return min((name for name in names if name != "dev/loss"), default="dev/loss" if names else "")
