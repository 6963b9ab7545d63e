"""Figures of the dashboard; all text of the user's is escaped, as plotly reads some HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis import plots
from analysis.dashboard.live import Cell
from analysis.plots import PALETTE, translucent
from analysis.tables import metric_name, rate, scale

#: A plotly figure as plain data: building plotly's own objects takes ten times as long.
Figure = dict[str, Any]
#: States in the order of the legend, with colours that stand apart from the scores' blues.
STATES = {
    "running": "#E69F00",
    "submitted": "#c9b458",
    "planned": "#b9bec7",
    "done": "#12805c",
    "preempted": "#8C6BB1",
    "cancelled": "#8a8f98",
    "lost": "#D55E00",
    "failed": "#c0392b",
    "unreadable": "#c0392b",
}
#: Curves drawn at once; more cannot be told apart.
MAX_CURVES = 12
AXES = {"forwards_total": "forwards", "step": "steps", "train_seconds": "seconds"}
BAD = ("failed", "lost", "unreadable")


def layout(x_title: str, y_title: str) -> dict[str, Any]:
    """The layout of the report's figures, with room for the legend and a plain tool bar."""
    shape = plots.layout(x_title, y_title)
    for name in ("xaxis", "yaxis"):
        shape[name] |= {"automargin": True, "gridcolor": "#dde2e9", "linecolor": "#c6ccd6"}
        shape[name]["title"]["standoff"] = 8
    shape["modebar"] = {"bgcolor": "rgba(0,0,0,0)", "color": "#8a93a0", "activecolor": "#0b63ce"}
    return shape


def safe(text: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(" ".join(str(text).split()), quote=False)


def grid(cells: Sequence[Cell]) -> Figure:
    """One square per run: rows are methods and rates, columns models, tasks and seeds.

    The colour is the last score; runs without one have the colour of their state, failed and
    diverged ones a red cross.
    """
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    spots: list[tuple[Cell, int, int]] = []
    for cell in sorted(cells, key=_place):
        row = rows.setdefault(_row_name(cell), len(rows))
        column = columns.setdefault(_column_name(cell), len(columns))
        spots.append((cell, column, row))
    scored = [spot for spot in spots if spot[0].score is not None]
    data: list[Any] = []
    size = _square(len(rows), len(columns))
    if scored:
        factor = scale(scored[0][0].metric.removeprefix("dev/"))
        values = [cell.score * factor for cell, _, _ in scored]
        title = f"dev {metric_name(scored[0][0].metric.removeprefix('dev/'))}"
        data.append(_squares(scored, "scored", size, values) | {"showlegend": False})
        data[-1]["marker"] |= {
            "colorscale": [[0, "#e3eef9"], [0.5, "#6aaed6"], [1, "#08306b"]],
            "cmin": min(values),
            "cmax": max(values),
            "colorbar": {"title": {"text": title, "side": "right"}, "thickness": 12},
        }
    for state, ink in STATES.items():
        # Runs with a score get a frame in the colour of their state, unless they are done.
        own = [s for s in spots if s[0].state == state]
        bare = [s for s in own if s[0].score is None]
        framed = [s for s in own if s[0].score is not None and state != "done"]
        if bare:
            data.append(_squares(bare, state, size, ink))
        if framed:
            data.append(_squares(framed, state, size, "rgba(0,0,0,0)"))
            data[-1]["marker"]["line"] = {"color": ink, "width": 3}
            data[-1]["showlegend"] = not bare
    bad = [s for s in spots if s[0].state in BAD or s[0].diverged]
    if bad:
        crosses = _squares(bad, "failed or diverged", size * 0.7, "#c0392b")
        crosses["marker"] |= {"symbol": "x-thin", "line": {"color": "#c0392b", "width": 3}}
        data.append(crosses)
    shape = layout("", "")
    shape["height"] = max(220, 130 + (size + 4) * len(rows))
    shape["xaxis"] |= _ticks(columns, size, 40) | {
        "side": "top",
        "range": [-0.6, len(columns) - 0.4],
    }
    shape["yaxis"] |= _ticks(rows, size, 400) | {"range": [len(rows) - 0.4, -0.6]}
    shape["margin"] = {"l": 8, "r": 8, "t": 8, "b": 40}
    shape["hovermode"] = "closest"
    shape["clickmode"] = "event"
    return {"data": data, "layout": shape}


def _place(cell: Cell) -> tuple[Any, ...]:
    about = cell.about
    return (
        cell.method,
        about.get("lr") or 0.0,
        about.get("model") or "",
        about.get("task") or "",
        about.get("seed") or 0,
        cell.run_id,
    )


def _row_name(cell: Cell) -> str:
    lr = cell.about.get("lr")
    return cell.method + ("" if lr is None else f", lr {rate(lr)}")


def _column_name(cell: Cell) -> str:
    about = cell.about
    if len(about) == 1:
        return "?"
    return f"{about['model']} · {about['task']} · {about['seed']}"


def _square(num_rows: int, num_columns: int) -> float:
    return float(max(7, min(26, 760 // max(1, num_columns), 900 // max(1, num_rows))))


def _squares(spots: Sequence[Any], name: str, size: float, ink: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [column for _, column, _ in spots],
        "y": [row for _, _, row in spots],
        "customdata": [[cell.run_id, _words(cell)] for cell, _, _ in spots],
        "hovertemplate": "%{customdata[1]}<extra></extra>",
        "marker": {"symbol": "square", "size": size, "color": ink},
    }


def _words(cell: Cell) -> str:
    lines = [f"<b>{safe(_row_name(cell))}</b>", safe(_column_name(cell))]
    lines.append(f"{cell.state}, step {cell.step:,} of {cell.steps:,}")
    if cell.score is not None:
        lines.append(f"{safe(cell.metric)} {cell.score:.4f}, best {cell.best:.4f}")
    if cell.diverged:
        lines.append("diverged")
    if cell.error:
        lines.append(safe(cell.error)[:120])
    return "<br>".join([*lines, safe(cell.run_id)])


def _ticks(names: dict[str, int], size: float, most: int) -> dict[str, Any]:
    shown = names if len(names) <= most and size >= 9 else {}
    return {
        "tickvals": list(shown.values()),
        "ticktext": [safe(name) if len(name) < 60 else f"{safe(name[:58])}…" for name in shown],
        "automargin": True,
        "showgrid": False,
    }


def curves(cells: Sequence[Cell], axis: str, metric: str) -> tuple[Figure, str]:
    """Mean over seeds with a band of one standard deviation, running ones included.

    Args:
        cells: runs to draw.
        axis: key of `AXES`.
        metric: "dev/…" key.

    Returns:
        (figure, what was left out, or "").
    """
    groups: dict[str, list[Cell]] = {}
    several = len({(c.about.get("model"), c.about.get("task")) for c in cells}) > 1
    for cell in sorted(cells, key=_place):
        if metric in cell.log.columns and (axis == "step" or axis in cell.log.columns):
            where = f"{cell.about['task']}: " if several else ""
            groups.setdefault(where + _row_name(cell), []).append(cell)
    sign = 1.0 if metric == "dev/loss" else -1.0

    def last(own: Sequence[Cell]) -> float:
        values = [c.score if metric == c.metric else _last(c.log[metric]) for c in own]
        known = [value for value in values if value is not None]
        return sign * float(np.mean(known)) if known else math.inf

    ranked = sorted(groups.items(), key=lambda item: (math.isnan(last(item[1])), last(item[1])))
    factor = scale(metric.removeprefix("dev/"))
    data: list[Any] = []
    for number, (name, own) in enumerate(ranked[:MAX_CURVES]):
        cost, centre, spread = _mean_curve(own, axis, metric)
        if not cost.size:
            continue
        ink = PALETTE[number % len(PALETTE)]
        centre, spread = centre * factor, spread * factor
        if len(own) > 1:
            data.append(
                {
                    "type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                    "x": [*cost.tolist(), *cost[::-1].tolist()],
                    "y": _finite(np.concatenate([centre + spread, (centre - spread)[::-1]])),
                    "fill": "toself", "fillcolor": translucent(ink), "showlegend": False,
                    "legendgroup": str(number),
                }
            )  # fmt: skip
        label = safe(name) + (f" ({len(own)})" if len(own) > 1 else "")
        dash = "solid" if number < len(PALETTE) else "dot"
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": label, "x": cost.tolist(),
                "y": _finite(centre), "line": {"color": ink, "width": 2.2, "dash": dash},
                "marker": {"size": 4}, "legendgroup": str(number),
                "hovertemplate": "%{y:.2f} at %{x:,.6~g}",
            }
        )  # fmt: skip
    shape = layout(AXES[axis], f"dev {metric_name(metric.removeprefix('dev/'))}")
    shape["hovermode"] = "closest"
    shape["uirevision"] = f"{axis} {metric}"  # zoom survives an update
    # The legend is below the plot and grows with the number of curves.
    shape["margin"]["b"] = 60 + 20 * (1 + min(len(ranked), MAX_CURVES) // 3)
    shape["height"] = 360 + shape["margin"]["b"]
    left = len(ranked) - MAX_CURVES
    note = f"the {MAX_CURVES} best of {len(ranked)} settings are drawn; filter for others"
    return {"data": data, "layout": shape}, note if left > 0 else ""


def _last(column: pl.Series) -> float | None:
    known = column.drop_nulls().drop_nans()
    return float(known[-1]) if known.len() else None


def _mean_curve(cells: Sequence[Cell], axis: str, metric: str) -> tuple[Any, Any, Any]:
    """Cost, mean and sd at the steps that every one of the runs has evaluated so far."""
    tables = []
    for cell in cells:
        names = list(dict.fromkeys(["step", axis, metric]))
        tables.append(cell.log.select(names).filter(pl.col(metric).is_not_null()))
    steps = tables[0]["step"].to_numpy()
    for table in tables[1:]:
        steps = np.intersect1d(steps, table["step"].to_numpy())
    if not steps.size:
        return np.empty(0), np.empty(0), np.empty(0)
    picked = [table.filter(pl.col("step").is_in(steps)) for table in tables]
    cost = np.mean([table[axis].cast(pl.Float64).to_numpy() for table in picked], axis=0)
    values = np.stack([table[metric].to_numpy() for table in picked])
    sd = values.std(axis=0, ddof=1) if len(cells) > 1 else np.zeros(steps.size)
    return cost, values.mean(axis=0), sd


def _finite(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


#: Panels of a run's page: title, keys drawn in it, logarithmic or not.
_PANELS = (
    ("loss", ("train/loss", "dev/loss"), False),
    ("dev metric", ("dev/accuracy", "dev/f1"), False),
    ("projected_grad", ("zo/projected_grad",), False),
    ("moved share and zero share", ("zo/moved_share", "zo/zero_share"), False),
    ("seconds per step", ("perf/step_seconds", "perf/forward_seconds"), False),
)
_POINTS = 2000


def journal(log: pl.DataFrame, name: str = "") -> list[tuple[str, Figure]]:
    """The plots of one run: what it logged over its steps; (title, figure)."""
    figures = []
    thin = max(1, -(-log.height // _POINTS))
    for title, keys, _ in _PANELS:
        data = []
        for number, key in enumerate(key for key in keys if key in log.columns):
            own = log.select("step", key).drop_nulls()
            own = own.gather_every(thin) if own.height > _POINTS else own
            noisy = key in ("train/loss", "zo/projected_grad")
            data.append(
                {
                    "type": "scatter", "name": key, "x": own["step"].to_list(),
                    "y": _finite(own[key].to_numpy()),
                    "mode": "markers" if noisy else "lines+markers",
                    "marker": {"size": 3 if noisy else 4},
                    "line": {"color": PALETTE[number]}, "showlegend": True,
                }
            )  # fmt: skip
            data[-1]["marker"]["color"] = PALETTE[number]
        if data:
            shape = layout("", "")
            shape["height"] = 280
            figures.append((title, {"data": data, "layout": shape}))
    return figures


def overlay(first: Cell, second: Cell) -> list[tuple[str, Figure]]:
    """Two runs in the same panels."""
    figures = []
    for title, keys, _ in _PANELS:
        data = []
        for number, cell in enumerate((first, second)):
            for key in keys:
                if key in cell.log.columns:
                    own = cell.log.select("step", key).drop_nulls()
                    own = own.gather_every(max(1, -(-own.height // _POINTS)))
                    data.append(
                        {
                            "type": "scatter", "mode": "lines", "x": own["step"].to_list(),
                            "y": _finite(own[key].to_numpy()),
                            "name": f"{'AB'[number]}: {key}",
                            "line": {
                                "color": PALETTE[number],
                                "dash": "solid" if key == keys[0] else "dot",
                            },
                        }
                    )  # fmt: skip
        if data:
            shape = layout("", "")
            shape["height"] = 280
            figures.append((title, {"data": data, "layout": shape}))
    return figures
