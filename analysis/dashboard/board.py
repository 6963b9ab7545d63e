"""The first thing a page shows, as plain data for `board.js`: counts, grid and list of runs.

Plain data because a thousand squares cost plotly seconds and React more than one; the browser
draws them itself in the time of one frame, before either of the two is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from analysis.dashboard.live import Cell
from analysis.tables import level, metric_name, rate

#: Rows of the list of runs; the filter finds the others.
PAGE = 100
#: States in the order of the legend.
STATES = ("running", "submitted", "planned", "done", "preempted", "cancelled", "lost", "failed",
          "unreadable")  # fmt: skip
BAD = ("failed", "lost", "unreadable")
#: Places in the list of runs: what needs a look comes first.
_RANK = {"failed": 0, "unreadable": 0, "lost": 1, "running": 2, "done": 4}
_NOTE = 300


def board(cells: Sequence[Cell], unread: int = 0) -> dict[str, Any]:
    """What `board.js` draws.

    Args:
        cells: the runs to show.
        unread: runs that are there but have not been read yet.

    Returns:
        `counts`: [number, words, state] per chip. `rows`, `columns`: names of the grid's rows
        (method and rate) and columns ([model, task, seed]). `cells`: a list per run in the order
        of the list of runs: row, column, id, state, step, steps, score as text, best as text,
        shade (0 to 1: the worst to the best last score of the same model and task; None without
        one), bad (0 or 1), diverged (0 or 1), minutes left or None, name of the score, note.
        `page`: rows of the list.
    """
    rows: dict[str, int] = {}
    for cell in sorted(cells, key=place):
        rows.setdefault(row_name(cell), len(rows))
    columns = {
        name: i for i, name in enumerate(sorted({_column(c) for c in cells}, key=_seed_last))
    }
    shades = _shades(cells)
    ranked = sorted(cells, key=lambda c: (*_rank(c), c.run_id))
    return {
        "counts": _counts(cells, unread),
        "rows": list(rows),
        "columns": list(columns),
        "cells": [
            [
                rows[row_name(cell)], columns[_column(cell)], cell.run_id, cell.state,
                cell.step, cell.steps,
                _score(cell, cell.score), _score(cell, cell.best), shades.get(cell.run_id),
                int(cell.state in BAD or cell.diverged), int(cell.diverged),
                None if not cell.eta else math.ceil(cell.eta / 60), score_name(cell), _note(cell),
            ]
            for cell in ranked
        ],
        "page": PAGE,
    }  # fmt: skip


def as_script(data: dict[str, Any]) -> str:
    """The data as JSON in which no `<` is left to end a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def place(cell: Cell) -> tuple[Any, ...]:
    """Order of runs in the grid and in legends."""
    about = cell.about
    return (
        cell.method,
        about.get("lr") or 0.0,
        about.get("model") or "",
        about.get("task") or "",
        about.get("seed") or 0,
        cell.run_id,
    )


def row_name(cell: Cell) -> str:
    """Method and rate."""
    lr = cell.about.get("lr")
    return cell.method + ("" if lr is None else f", lr {rate(lr)}")


def _column(cell: Cell) -> tuple[str, str, str]:
    about = cell.about
    if len(about) == 1:
        return "?", "", ""
    return str(about["model"]), str(about["task"]), str(about["seed"])


def _seed_last(column: tuple[str, str, str]) -> tuple[Any, ...]:
    model, task, seed = column
    return model == "?", model, task, int(seed or 0)


def _rank(cell: Cell) -> tuple[int, bool]:
    rank = _RANK.get(cell.state, 3)
    return 0 if cell.diverged and rank == 4 else rank, not cell.diverged


def _counts(cells: Sequence[Cell], unread: int) -> list[tuple[int, str, str]]:
    states = {state: sum(cell.state == state for cell in cells) for state in STATES}
    states["diverged"] = sum(cell.diverged for cell in cells)
    counts = [(len(cells), "run" if len(cells) == 1 else "runs", "")]
    counts += [(unread, "not read yet", "")] if unread else []
    return counts + [(number, state, state) for state, number in states.items() if number]


def _shades(cells: Sequence[Cell]) -> dict[str, float]:
    """Each last score between the worst (0) and the best (1) of its model, task and metric."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.score is not None and math.isfinite(cell.score):
            groups.setdefault((*_column(cell)[:2], cell.metric), []).append(cell)
    shades = {}
    for (*_, metric), own in groups.items():
        scores = [cell.score for cell in own]
        low, high = min(scores), max(scores)
        for cell in own:
            share = (cell.score - low) / (high - low) if high > low else 1.0
            shades[cell.run_id] = round(1.0 - share if metric == "dev/loss" else share, 3)
    return shades


def _score(cell: Cell, value: float | None) -> str:
    return "–" if value is None else level(value, cell.metric.removeprefix("dev/"))


def score_name(cell: Cell) -> str:
    """What the score is, for people."""
    return f"dev {metric_name(cell.metric.removeprefix('dev/'))}" if cell.metric else ""


def _note(cell: Cell) -> str:
    text = cell.error or "; ".join(cell.health.warnings if cell.health else ())
    return text if len(text) <= _NOTE else text[: _NOTE - 1] + "…"
