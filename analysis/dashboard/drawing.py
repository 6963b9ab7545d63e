"""Figures of the dashboard; all text of the user's is escaped, as plotly reads some HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis import plots
from analysis.dashboard.board import place, row_name
from analysis.dashboard.live import Cell
from analysis.plots import PALETTE, translucent
from analysis.tables import metric_name, scale

#: A plotly figure as plain data: building plotly's own objects takes ten times as long.
Figure = dict[str, Any]
#: Curves drawn at once; more cannot be told apart.
MAX_CURVES = 12
AXES = {"forwards_total": "forwards", "step": "steps", "train_seconds": "seconds"}


def dressed(shape: dict[str, Any]) -> dict[str, Any]:
    """A layout of the report's figures, changed to have room for words and a plain tool bar."""
    for name in ("xaxis", "yaxis"):
        shape[name] |= {"automargin": True, "gridcolor": "#dde2e9", "linecolor": "#c6ccd6"}
        shape[name]["title"]["standoff"] = 8
    shape["modebar"] = {"bgcolor": "rgba(0,0,0,0)", "color": "#8a93a0", "activecolor": "#0b63ce"}
    return shape


def layout(x_title: str, y_title: str) -> dict[str, Any]:
    """The layout of a figure of the dashboard."""
    return dressed(plots.layout(x_title, y_title))


def safe(text: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(" ".join(str(text).split()), quote=False)


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
    models = len({c.about.get("model") for c in cells}) > 1
    tasks = len({c.about.get("task") for c in cells}) > 1
    for cell in sorted(cells, key=place):
        if metric in cell.log.columns and (axis == "step" or axis in cell.log.columns):
            parts = [cell.about["model"]] * models + [cell.about["task"]] * tasks
            where = f"{', '.join(parts)}: " if parts else ""
            groups.setdefault(where + row_name(cell), []).append(cell)
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
    shape = layout(plots.axis_title(axis), f"dev {metric_name(metric.removeprefix('dev/'))}")
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


#: Panels of a run's page: title, keys drawn in it, what its vertical axis is of.
_PANELS = (
    ("loss", ("train/loss", "dev/loss"), "nats"),
    ("dev metric", ("dev/accuracy", "dev/f1"), "share, 0 to 1"),
    ("projected_grad", ("zo/projected_grad",), "(L+ − L−) / 2 eps"),
    ("moved share and zero share", ("zo/moved_share", "zo/zero_share"), "share, 0 to 1"),
    ("seconds per step", ("perf/step_seconds", "perf/forward_seconds"), "s"),
)
_POINTS = 2000


def journal(log: pl.DataFrame, name: str = "") -> list[tuple[str, Figure]]:
    """The plots of one run: what it logged over its steps; (title, figure)."""
    figures = []
    thin = max(1, -(-log.height // _POINTS))
    for title, keys, what in _PANELS:
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
            shape = layout("steps", what)
            shape["height"] = 280
            figures.append((title, {"data": data, "layout": shape}))
    return figures


def overlay(first: Cell, second: Cell) -> list[tuple[str, Figure]]:
    """Two runs in the same panels."""
    figures = []
    for title, keys, what in _PANELS:
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
            shape = layout("steps", what)
            shape["height"] = 280
            figures.append((title, {"data": data, "layout": shape}))
    return figures
