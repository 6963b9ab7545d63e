"""Interactive figures (plotly) for the page and the dashboard.

Everything drawn is a function of the logs: no ids, times or random numbers enter a figure.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis import stats
from analysis.convergence import final_values, mean_curve
from analysis.methods import Group
from analysis.speedup import AXES, compare, target_level
from analysis.tables import metric_name, scale
from zolab.tracking.schema import BACKPROP_FORWARDS

#: Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow:
#: these are readable on white and on dark ground.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C564B")
_CONSTANTS = ("#8a8f98", "#5f6772", "#a3a9b3")
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
_PATTERNS = ("", "/", ".", "x")
AXIS_TITLES = {
    "forwards_total": "forward passes",
    "step": "steps",
    "train_seconds": "training seconds",
    "gpu_seconds": "GPU seconds",
}


def colours(groups: Sequence[Group]) -> dict[str, str]:
    """One colour per method label, the same in every figure of a report."""
    labels = dict.fromkeys(method.label for group in groups for method in group.trained)
    chosen = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
    flat = dict.fromkeys(m.label for g in groups for m in g.methods if m.zero_shot)
    return chosen | {label: _CONSTANTS[i % len(_CONSTANTS)] for i, label in enumerate(flat)}


def axis_title(axis: str) -> str:
    """Heading of an axis of costs; that of forwards says how a back-propagation step counts."""
    convention = f" (a backprop step counts {BACKPROP_FORWARDS})"
    return AXIS_TITLES[axis] + (convention if axis == "forwards_total" else "")


def lap(colour: dict[str, str], label: str) -> int:
    """How many labels before this one have its colour: what it needs another shape to tell."""
    inks = list(colour.values())
    return inks[: list(colour).index(label)].count(colour[label])


def convergence_figures(group: Group, colour: dict[str, str]) -> list[tuple[str, go.Figure]]:
    """Dev metric over each axis that was logged, as (name of the axis, figure).

    Lines are means over seeds, bands one standard deviation to each side; methods without training
    are dashed horizontal lines.
    """
    figures = []
    for axis, title in AXIS_TITLES.items():
        figure = _convergence(group, colour, axis)
        if figure is not None:
            figures.append((title, figure))
    return figures


def _convergence(group: Group, colour: dict[str, str], axis: str) -> go.Figure | None:
    key, factor = f"dev/{group.metric}", scale(group.metric)
    data: list[Any] = []
    longest = 0.0
    for method in group.trained:
        cost, centre, spread = mean_curve(method, key, axis)
        if not cost.size:
            continue
        longest = max(longest, float(cost[-1]))
        centre, spread = centre * factor, spread * factor
        name, ink = html.escape(method.label, quote=False), colour[method.label]
        again = lap(colour, method.label)
        if len(method.done) > 1:
            edge = np.concatenate([centre + spread, (centre - spread)[::-1]])
            data.append(
                go.Scatter(
                    x=[*cost.tolist(), *cost[::-1].tolist()],
                    y=_finite(edge),
                    fill="toself",
                    fillcolor=translucent(ink),
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    legendgroup=name,
                    showlegend=False,
                )
            )
        data.append(
            go.Scatter(
                x=cost.tolist(),
                y=_finite(centre),
                customdata=_finite(spread),
                name=name,
                legendgroup=name,
                mode="lines+markers",
                line={"color": ink, "width": 2.5},
                marker={"size": 5 + 2 * (again > 0), "symbol": _SYMBOLS[again % len(_SYMBOLS)]},
                hovertemplate="%{y:.2f} ± %{customdata:.2f} at %{x:,.6~g}",
            )
        )
    if not data:
        return None
    for i, method in enumerate(m for m in group.methods if m.zero_shot):
        height = stats.mean(final_values(method, key)) * factor
        if math.isfinite(height):
            data.append(
                go.Scatter(
                    x=[0.0, longest],
                    y=[height, height],
                    name=html.escape(method.label, quote=False),
                    mode="lines",
                    line={
                        "color": colour[method.label],
                        "width": 2,
                        "dash": _DASHES[i % len(_DASHES)],
                    },
                    hovertemplate="%{y:.2f}",
                )
            )
    shape = layout(axis_title(axis), f"dev {metric_name(group.metric)}")
    shape["hovermode"] = "closest"
    return go.Figure(data, shape)


def speedup_figure(group: Group, colour: dict[str, str]) -> go.Figure | None:
    """Bars of the median speedup per method and axis; a miss is an empty place with its name."""
    target = target_level(group)
    if target is None or group.baseline is None:
        return None
    methods = [method for method in group.trained if method is not group.baseline]
    axes = [axis for axis in AXES if compare(group, group.baseline, axis, target) is not None]
    if not methods or not axes:
        return None
    data = []
    for method in methods:
        heights, words = [], []
        for axis in axes:
            result = compare(group, method, axis, target)
            known = result is not None and math.isfinite(result.ratio) and result.ratio > 0
            heights.append(result.ratio if known and result is not None else 0.0)
            words.append(_bar_text(result))
        data.append(
            go.Bar(
                x=[AXES[axis] for axis in axes],
                y=heights,
                text=words,
                textposition="outside",
                name=html.escape(method.label, quote=False),
                marker={
                    "color": colour[method.label],
                    "pattern": {"shape": _PATTERNS[lap(colour, method.label) % len(_PATTERNS)]},
                },
                hovertemplate="%{x}: %{text}",
                cliponaxis=False,
            )
        )
    base = html.escape(group.baseline.label, quote=False)
    shape = layout("", f"speedup over {base}")
    shape["barmode"] = "group"
    shape["uniformtext"] = {"minsize": 8, "mode": "hide"}
    shape["yaxis"]["rangemode"] = "tozero"
    shape["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
         "line": {"dash": "dot", "width": 1.5, "color": "#8a8f98"}}
    ]  # fmt: skip
    return go.Figure(data, shape)


def _bar_text(result: stats.Speedup | None) -> str:
    if result is None:
        return "not logged"
    if math.isinf(result.median):
        return "not reached"
    if not math.isfinite(result.ratio):
        return "at the start"
    return f"{'≥ ' if result.lower_bound else ''}{result.ratio:.2f}×"


def _finite(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON: a NaN becomes null, which plotly draws as a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]


def translucent(ink: str) -> str:
    red, green, blue = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def layout(x_title: str, y_title: str) -> dict[str, Any]:
    """Layout without colours of text and ground: the page sets those by its light or dark mode."""
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 16, "b": 48},
        "xaxis": {"title": {"text": x_title}, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "zeroline": False},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "height": 440,
    }
