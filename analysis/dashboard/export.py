"""The dashboard as a static page: grid, report and list of runs in one file."""

from __future__ import annotations

import os
from pathlib import Path

from analysis import plots
from analysis.contents import Contents, contents
from analysis.dashboard.assets import asset
from analysis.dashboard.board import as_script, board
from analysis.dashboard.live import Live
from analysis.methods import group_runs
from analysis.page import page
from zolab.errors import UserError


def export(runs: Path, out: Path, baseline: str | None = None) -> Path:
    """Write the page; runs that have not finished are in the grid and the list only.

    Args:
        runs: folder of run folders.
        out: file to write.
        baseline: method that speedups are over; None means "mezo".

    Raises:
        UserError: no run can be read, or the file cannot be written.
    """
    snapshot = Live(runs).snapshot()
    logs = snapshot.runs()
    if (logs.runs["state"] == "done").any():
        groups, notes = group_runs(logs, baseline)
        report = contents(groups, logs, notes)
    else:
        report = Contents((), (), (), (), ("no finished run yet",))
    cells = list(snapshot.cells.values())
    unread = [f"run {c.run_id}: {c.error}" for c in cells if c.state == "unreadable"]
    report = Contents(**{**vars(report), "notes": (*report.notes, *unread)})
    grid = (asset("dashboard.css"), as_script(board(cells)), asset("board.js"))
    text = page(report, logs, plots.colours(report.groups), grid)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"--export={out}: cannot be written ({error.strerror})") from error
    return out
