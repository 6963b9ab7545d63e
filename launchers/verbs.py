"""What a user asks of a runs folder besides new sweeps: status, cancel, retry, logs, clean."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launchers import slurm_state
from launchers import status as cells
from launchers.clean import leftovers
from launchers.display import last_lines
from launchers.job import JOBS
from launchers.member import log_name
from launchers.plan import Entry
from launchers.submission import Jobs
from zolab import ledger
from zolab.errors import UserError
from zolab.verbs.common import Parser

_WATCH_SECONDS = 2.0
_FOLLOW_SECONDS = 0.5
#: What a watcher wants to see first, where not all cells fit on the screen.
_WATCHED = ("running", "failed", "lost", "preempted", "cancelled", "submitted", "planned", "done")


def _parser(verb: str, description: str) -> Parser:
    return Parser(prog=f"zolab {verb}", description=description)


def _add_runs(parser: Parser) -> None:
    parser.add_argument(
        "runs", metavar="RUNS", nargs="?", type=Path, default=Path("runs"), help="default: runs"
    )


def _add_cells(parser: Parser, nargs: str) -> None:
    parser.add_argument("cells", metavar="CELL", nargs=nargs, help="a run id, or how one begins")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs")


def status(arguments: Sequence[str]) -> int:
    """`zolab status [RUNS]`: a table, JSON, or a table that is kept up to date."""
    parser = _parser("status", "List the cells of a runs folder with state and progress.")
    _add_runs(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--watch", action="store_true", help="again and again until all ended")
    options = parser.parse_args(arguments)
    if options.json and options.watch:
        raise UserError("--json: not together with --watch")
    if not options.watch:
        rows = cells.rows_of(cells.entries_of(cells.folders_in(options.runs)))
        if options.json:
            print(json.dumps(cells.as_json(rows), allow_nan=False, default=str))
        else:
            print("\n".join([*(cells.table(rows) if rows else []), cells.summary(rows)]))
        return 0
    polled = cells.Polled()
    while True:
        rows = cells.rows_of(cells.entries_of(cells.folders_in(options.runs), polled))
        rows.sort(key=lambda row: _WATCHED.index(row.state))
        _redraw(cells.table(rows), cells.summary(rows))
        if all(row.state in cells.ENDED for row in rows):
            return 0
        time.sleep(_WATCH_SECONDS)


def _redraw(lines: Sequence[str], last: str) -> None:
    """Fill the terminal with as many lines as fit; elsewhere print the summary alone."""
    if not sys.stdout.isatty():
        print(last, flush=True)
        return
    size = shutil.get_terminal_size()
    room = max(1, size.lines - 2)
    shown = list(lines[:room])
    if len(lines) > room:
        shown[-1] = f"... and {len(lines) - room + 1} more"
    text = "\n".join(line[: size.columns - 1] for line in [*shown, last])
    print("\x1b[H\x1b[J" + text, flush=True)


def cancel(arguments: Sequence[str]) -> int:
    """`zolab cancel [CELL ...]`: those named, or all that run or wait."""
    parser = _parser("cancel", "Stop cells that run or wait; all of them if none is named.")
    _add_cells(parser, "*")
    options = parser.parse_args(arguments)
    folders = cells.choose(cells.folders_in(options.runs), options.cells)
    states = ("running", "submitted") + (("planned", "preempted", "lost") if options.cells else ())
    chosen = [e for e in cells.entries_of(folders) if e.state in states]
    known = Jobs()
    jobs, far = [], []
    for entry in chosen:
        # first the word, then the deed: a cell that stops finds out why
        job = known.of(entry)
        ledger.write_status(entry.run_dir, "cancelled", error="cancelled by the user")
        if job:
            jobs.append(job)
        elif entry.state == "running" and not _terminate(entry):
            far.append(entry)
    said = ""
    for start in range(0, len(jobs), 500):
        said = slurm_state.cancel(jobs[start : start + 500]) or said
    for entry in far:
        host = ledger.read_status(entry.run_dir).get("host")
        print(f"{entry.run_id} runs on {host}: end its process there", file=sys.stderr)
    if said:
        print(f"zolab: scancel: {said}", file=sys.stderr)
    print(f"cancelled {len(chosen) - len(far)} of {len(folders)} cells")
    return 1 if said or far else 0


def _terminate(entry: Entry) -> bool:
    """Ask the process of a local cell to stop; False if it is on another machine."""
    holder = ledger.find_holder(entry.run_dir)
    if holder is None:
        return True
    if holder.alive is None or holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def retry(arguments: Sequence[str]) -> int:
    """`zolab retry [CELL ...]`: with the settings each cell was stored with."""
    from launchers.sweep import launch
    from zolab.compose import read_cell, title

    parser = _parser("retry", "Run failed cells again; all of them if none is named.")
    _add_cells(parser, "*")
    parser.add_argument(
        "--state",
        choices=("failed", "cancelled", "all"),
        default=None,
        help="which cells to run again; default: failed, or whatever the named cells are",
    )
    options = parser.parse_args(arguments)
    wanted = {"failed": ("failed",), "cancelled": ("cancelled",)}.get(
        options.state or ("all" if options.cells else "failed"),
        ("failed", "cancelled", "preempted", "lost"),
    )
    folders = cells.choose(cells.folders_in(options.runs), options.cells)
    chosen = [read_cell(e.run_dir) for e in cells.entries_of(folders) if e.state in wanted]
    if not chosen:
        print(f"nothing to run again: no cell is {' or '.join(wanted)}")
        return 0
    code = 0
    for launcher in {json.dumps(cell["launcher"], sort_keys=True) for cell in chosen}:
        group = [c for c in chosen if json.dumps(c["launcher"], sort_keys=True) == launcher]
        for cell in group:  # where they lie now, whatever folder they were made in
            cell["run_root"] = str(options.runs)
        sweep = {"retry": "all", "wait": group[0]["sweep"]["wait"]}
        labels = [title(cell) for cell in group]
        code |= launch(group, group[0]["launcher"], sweep, labels=labels).exit_code
    return code


def logs(arguments: Sequence[str]) -> int:
    """`zolab logs CELL [-f]`: what its process printed, and with -f what it goes on to print."""
    parser = _parser("logs", "Print what the process of a cell printed.")
    _add_cells(parser, "+")
    parser.add_argument("-f", "--follow", action="store_true", help="until the cell has ended")
    options = parser.parse_args(arguments)
    folders = cells.choose(cells.folders_in(options.runs), options.cells)
    if options.follow and len(folders) > 1:
        raise UserError(f"-f: follows one cell, not {len(folders)}")
    missing = 0
    for folder in folders:
        if len(folders) > 1:
            print(f"==> {folder.name} <==", flush=True)
        if options.follow:
            _follow(folder)
        elif (file := log_of(folder)) is not None:
            _copy(file, 0)
        elif lines := last_lines(folder, 1000):
            print("\n".join(lines))
        else:
            print(f"zolab: {folder.name} has printed nothing yet", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def log_of(folder: Path) -> Path | None:
    """The file with the output of a cell's last process, None if there is none (yet)."""
    named = ledger.read_status(folder).get("log")
    if not named:
        job = Jobs().of(Entry(folder.name, folder.absolute(), {}, ""))
        named = folder.absolute().parent / JOBS / log_name(job) if job else None
    return Path(named) if named and Path(named).is_file() else None


def _follow(folder: Path) -> None:
    file, position = None, 0
    while True:
        ended = ledger.state_of(folder) in cells.ENDED
        newest = log_of(folder)
        if newest != file:
            file, position = newest, 0
        if file is not None:
            position = _copy(file, position)
        if ended:
            return
        time.sleep(_FOLLOW_SECONDS)


def _copy(file: Path, position: int) -> int:
    """Print a file from a byte on; returns where it ends now."""
    with open(file, "rb") as stream:
        stream.seek(position)
        data = stream.read()
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return position + len(data)


def clean(arguments: Sequence[str]) -> int:
    """`zolab clean [RUNS]`: leftovers are listed; with --yes they are removed."""
    parser = _parser(
        "clean",
        "Remove what nothing needs any more: outputs and records of finished jobs, directories "
        "replaced by sweep.force, checkpoints and temporary files of finished cells. Configs, "
        "journals, metrics and results stay.",
    )
    _add_runs(parser)
    parser.add_argument("--yes", action="store_true", help="remove; without it only say what")
    options = parser.parse_args(arguments)
    found = leftovers(cells.folders_in(options.runs), options.runs)
    total = sum(size for _, size in found)
    for path, size in found if not options.yes else []:
        print(f"{size / 2**20:9.1f} MiB  {path}")
    for path, _ in found if options.yes else []:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    what = "removed" if options.yes else "to remove (with --yes)"
    print(f"{len(found)} files and folders {what}, {total / 2**20:.1f} MiB")
    return 0
