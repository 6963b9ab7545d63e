"""One sweep from its cells to an exit status: plan, launch what is missing, say what failed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from launchers import slurm_state
from launchers.display import Board, error_table
from launchers.job import JOBS, RUN
from launchers.plan import DEFAULTS, Entry, Plan, Store, make_plan
from launchers.submission import alone, wait_for_orphans
from zolab import ledger
from zolab.errors import UserError

#: Folder under run_root for the old directories of cells that `sweep.force` runs anew.
REPLACED = ".replaced"

__all__ = ["Outcome", "Plan", "launch", "plan"]

plan = make_plan


@dataclass
class Outcome:
    """What became of a sweep.

    Attributes:
        plan: all cells, with their states at the end.
        exit_code: 0 if all cells are done, or, when nothing waits for them, if none has failed and
            all others are under way; 130 if interrupted; else 1.
    """

    plan: Plan
    exit_code: int

    @property
    def errors(self) -> list[Entry]:
        """Cells that ended without a result: by themselves, by the user, or killed from outside."""
        ended = ("failed", "cancelled", "lost")
        return [
            e for e in self.plan.entries if e.state in ended or (e.state == "preempted" and e.error)
        ]


def launch(
    cells: Sequence[Mapping[str, Any]],
    launcher: Mapping[str, Any],
    sweep: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[str] | None = None,
    function: str = RUN,
    store: Store | None = None,
    out: TextIO | None = None,
) -> Outcome:
    """Run the cells that are neither done nor under way.

    Args:
        cells: checked configs; equal ones are run once.
        launcher: launcher config; `kind` is "local" or "slurm".
        sweep: options `wait`, `retry`, `force`, `dry_run`.
        labels: what tells each cell from the others.
        function: what runs a cell, "module:function".
        store: names and writes cells; `zolab.compose` if None.
        out: where progress goes; standard output if None.

    Raises:
        UserError: nothing was run: unknown launcher, a folder that cannot be written, a collision
            of run ids, a refusal by SLURM.
    """
    options = {**DEFAULTS, **(sweep or {})}
    kind = launcher.get("kind", "local")
    if kind not in ("local", "slurm"):
        raise UserError(f"launcher.kind={kind}: no such launcher; allowed: local, slurm")
    wait = kind == "local" if options["wait"] is None else options["wait"]
    if kind == "local" and not wait:
        raise UserError("sweep.wait=false: cells on this machine need this process; allowed: true")
    if kind == "slurm" and not (options["dry_run"] or slurm_state.is_available()):
        raise UserError("launcher=slurm: the commands of SLURM (sbatch, squeue) are not found here")
    if store is None:
        from zolab import compose as store
    found = make_plan(cells, options, labels=labels, store=store)
    if kind == "slurm" and wait_for_orphans(found.entries):
        found = make_plan(cells, options, labels=labels, store=store)
    _group(found.entries)
    board = Board(found.entries, out or sys.stdout)
    board.note(found.summary())
    if options["dry_run"]:
        for entry in found.entries:
            board.note(f"  {entry.state:9s} {entry.action:5s} {entry}")
        return Outcome(found, 0)
    interrupted = False
    try:
        with _interruptible():
            if kind == "local":
                _prepare(found, store)
            else:
                _submit(found, options, store, launcher, board, function)
            _follow(found, kind, launcher, wait, board, function)
    except KeyboardInterrupt:
        interrupted = True
    board.close()
    return _conclude(found, wait, interrupted, board)


def _group(entries: Sequence[Entry]) -> None:
    """Let the curves of a sweep stand together in wandb, unless the config names a group."""
    if len(entries) < 2:
        return
    names = "".join(sorted(entry.run_id for entry in entries))
    group = "sweep-" + hashlib.sha256(names.encode()).hexdigest()[:8]
    for entry in entries:
        tracking = entry.cell.get("tracking")
        if isinstance(tracking, dict) and tracking["group"] is None:
            entry.cell = {**entry.cell, "tracking": {**tracking, "group": group}}


def _submit(
    found: Plan,
    options: Mapping[str, Any],
    store: Store,
    launcher: Mapping[str, Any],
    board: Board,
    function: str,
) -> None:
    """Queue what is to run. One launcher at a time; what another one has queued is not again."""
    from launchers import slurm

    roots = [entry.run_dir.parent for entry in found.to("run")]
    with _refused_folders(roots), alone(roots):
        # by their files alone: SLURM was asked a moment ago
        cells = [entry.cell for entry in found.to("run")]
        now = make_plan(cells, options, store=store, job_states=lambda jobs: None).entries
        for entry, again in zip(found.to("run"), now, strict=True):
            entry.state, entry.action, entry.error = again.state, again.action, again.error
        _prepare(found, store)
        if not found.to("run"):
            return
        arrays = slurm.submit(found.to("run"), launcher, function)
    board.note(
        f"submitted {len(found.to('run'))} cells as SLURM job {', '.join(arrays)}, "
        f"output in {slurm.log_folder(found.entries)}"
    )
    if launcher.get("report"):
        job = slurm.submit_report(roots[0], arrays, launcher)
        board.note(f"their report will be made by SLURM job {job}")


def _follow(
    found: Plan, kind: str, launcher: Mapping[str, Any], wait: bool, board: Board, function: str
) -> None:
    under_way = found.to("run") + found.to("wait")
    if kind == "local":
        from launchers.local import Slots

        slots = Slots(under_way, launcher, board, function)
        board.parallel = slots.parallel
        slots.run()
    elif wait:
        from launchers import slurm

        board.parallel = int(launcher.get("array_parallelism") or 256)
        slurm.follow(under_way, board)


@contextlib.contextmanager
def _refused_folders(roots: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = ", ".join(sorted({str(root) for root in roots}))
        raise UserError(f"run_root={where}: cannot be written ({error.strerror})") from error


def _prepare(found: Plan, store: Store) -> None:
    """Make all run directories before anything runs, so that a refusal leaves nothing half done."""
    for entry in found.to("wait"):
        store.write_cell(entry.cell)  # refuses another cell of the same name
    for entry in found.to("run"):
        if entry.state == "done":
            _set_aside(entry)
        store.write_cell(entry.cell)
        if ledger.read_status(entry.run_dir).get("state") not in (None, "planned"):
            # else a process that dies before it says anything would leave the old story
            none = dict.fromkeys(("job_id", "log", "submission"))
            ledger.write_status(entry.run_dir, "planned", **none)
        entry.state, entry.error = "planned", None
    roots = {entry.run_dir.parent for entry in found.to("run")}
    with _refused_folders(list(roots)):
        for root in roots:
            (root / JOBS).mkdir(parents=True, exist_ok=True)


def _set_aside(entry: Entry) -> None:
    """Keep the old run directory of a finished cell; one that failed is continued in place."""
    aside = entry.run_dir.parent / REPLACED
    aside.mkdir(exist_ok=True)
    number = 1
    while (aside / f"{entry.run_id}-{number}").exists():
        number += 1
    os.rename(entry.run_dir, aside / f"{entry.run_id}-{number}")


def _conclude(found: Plan, wait: bool, interrupted: bool, board: Board) -> Outcome:
    states = [entry.state for entry in found.entries]
    wanted = {"done"} if wait else {"done", "running", "submitted"}
    code = 0 if set(states) <= wanted else 1
    outcome = Outcome(found, 130 if interrupted and code else code)
    if outcome.errors:
        board.note(f"\n{len(outcome.errors)} of {len(states)} cells have no result:")
        board.note(error_table(outcome.errors))
        if any(entry.state == "preempted" for entry in outcome.errors):
            board.note("killed cells go on with the same command")
        if any(entry.state != "preempted" for entry in outcome.errors):
            board.note("run failed ones again with sweep.retry=failed, cancelled or all\n")
    if wait or interrupted or not found.to("run"):
        board.note(board.totals())
    if interrupted and code:
        board.note("interrupted; the same command continues")
    return outcome


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Treat the usual ways of ending a program as Ctrl-C, so that no process is left behind."""
    names = (signal.SIGTERM, signal.SIGHUP)
    try:
        before = {name: signal.signal(name, signal.default_int_handler) for name in names}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
