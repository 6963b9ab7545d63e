"""What a sweep has to do: which of its cells are done, under way, failed or still to be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from zolab import ledger

_RETRIED = {
    "none": (),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
    "all": ("failed", "cancelled"),
}
DEFAULTS = {"wait": None, "retry": "none", "force": False, "dry_run": False}


class Store(Protocol):
    """What planning needs of `zolab.compose`."""

    def run_id(self, cell: Mapping[str, Any]) -> str:
        """16 hex digits that name the cell."""

    def write_cell(self, cell: Mapping[str, Any]) -> Path:
        """Make the run directory, or accept the one that holds the same cell."""


@dataclass
class Entry:
    """One cell of a plan, and what became of it.

    Attributes:
        run_id: name of the cell.
        run_dir: its directory, absolute.
        cell: its checked config.
        label: what tells it from the others, empty for a single cell.
        state: one of `ledger.STATES`; kept up to date while the sweep runs.
        action: "run", "wait" (another process or job has it), "skip" (done) or "leave" (failed or
            cancelled, and no retry asked for).
        error: why it failed, one line.
    """

    run_id: str
    run_dir: Path
    cell: Mapping[str, Any]
    label: str
    state: str = "planned"
    action: str = "run"
    error: str | None = None
    tries: int = 0

    def __str__(self) -> str:
        return f"{self.run_id}  {self.label}".rstrip()


@dataclass
class Plan:
    """All different cells of a sweep in order, and how many were given twice."""

    entries: list[Entry]
    num_duplicates: int = 0
    counts: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counter(entry.state for entry in self.entries)

    def to(self, action: str) -> list[Entry]:
        """Entries with this action."""
        return [entry for entry in self.entries if entry.action == action]

    def summary(self) -> str:
        """One line: how many cells there are, in which states, and how many are to be run."""
        parts = [f"{n} {state}" for state, n in self.counts.items() if state != "planned"]
        parts.append(f"{len(self.to('run'))} to run")
        total = len(self.entries)
        same = self.num_duplicates
        merged = f" ({same} duplicate{'s' * (same != 1)} merged)" if same else ""
        return f"{total} cell{'s' * (total != 1)}{merged}: {', '.join(parts)}"


def make_plan(
    cells: Sequence[Mapping[str, Any]],
    sweep: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[str] | None = None,
    store: Store | None = None,
    job_states: Callable[[list[str]], dict[str, str] | None] | None = None,
) -> Plan:
    """Compare cells with the run directories. Changes nothing.

    Args:
        cells: checked configs; equal ones are merged.
        sweep: `retry` and `force` of the sweep options.
        labels: a label for each cell.
        store: names cells; `zolab.compose` if None.
        job_states: from job ids to SLURM states, None if SLURM does not answer;
            `launchers.slurm_state.job_states` if None.
    """
    from launchers.watch import settle

    if store is None:
        from zolab import compose as store
    options = {**DEFAULTS, **(sweep or {})}
    entries: dict[Path, Entry] = {}
    clocks: dict[Path, float] = {}
    for cell, label in zip(cells, labels or [""] * len(cells), strict=True):
        root, name = Path(cell["run_root"]).absolute(), store.run_id(cell)
        if root / name in entries:
            continue
        entry = entries[root / name] = Entry(name, root / name, cell, label)
        if entry.run_dir.is_dir():
            if root not in clocks:
                clocks[root] = ledger.filesystem_time(root)
            entry.state = ledger.state_of(entry.run_dir, now=clocks[root])
            entry.error = ledger.read_status(entry.run_dir).get("error")
    settle(list(entries.values()), job_states)
    for entry in entries.values():
        entry.action = _action(entry.state, options)
    return Plan(list(entries.values()), len(cells) - len(entries))


def _action(state: str, options: Mapping[str, Any]) -> str:
    if state in ("running", "submitted"):
        return "wait"
    if options["force"] or state in _RETRIED[options["retry"]]:
        return "run"
    return {"done": "skip", "failed": "leave", "cancelled": "leave"}.get(state, "run")
