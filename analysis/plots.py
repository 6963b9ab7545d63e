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
from analysis.speedup import AXES, compare, ratio_text, target_level
from analysis.tables import metric_name, scale
from zolab.tracking.schema import BACKPROP_FORWARDS

#: Okabe and Ito's colours, which colour-blind readers can tell apart, without black and yellow:
#: these are readable on white and on dark ground.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8C564B")
_CONSTANTS = ("#8a8f98", "#5f6772", "#a3a9b3")
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")
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
    """Speedup per method and axis of costs on a logarithmic scale, with its interval.

    An end that is a miss lies at the edge, and one that is only a bound where the bound is; both
    are arrows. What has no finite speedup is said in words at 1×.
    """
    target = target_level(group)
    if target is None or group.baseline is None:
        return None
    methods = [method for method in group.trained if method is not group.baseline]
    results = {axis: compare(group, group.baseline, axis, target) for axis in AXES}
    # Where the baseline itself costs nothing (GPU hours on a CPU) there is nothing to compare.
    axes = [axis for axis, own in results.items()
            if own is not None and (own.lower_bound or math.isfinite(own.ratio))]  # fmt: skip
    if not methods or not axes:
        return None
    found = [[compare(group, method, axis, target) for axis in axes] for method in methods]
    shown = [result for row in found for result in row if _has_point(result)]
    left, right = _speedup_range(shown)
    data: list[Any] = [
        go.Scatter(
            x=[None], y=[None], mode="markers", name=AXES[axis], legendgroup=axis,
            marker={"symbol": _SYMBOLS[number], "color": _CONSTANTS[0], "size": 9},
        )
        for number, axis in enumerate(axes)
    ]  # fmt: skip
    for row, (method, row_results) in enumerate(zip(methods, found, strict=True)):
        for number, (axis, result) in enumerate(zip(axes, row_results, strict=True)):
            height = row * (len(axes) + 1) + number
            line = _speedup_line(result, _SYMBOLS[number], colour[method.label], left, right)
            words = "not logged" if result is None else ratio_text(result)
            data.append(
                go.Scatter(
                    line | {"y": [height] * len(line["x"])},
                    legendgroup=axis,
                    showlegend=False,
                    cliponaxis=False,
                    hovertemplate=html.escape(f"{method.label}, {AXES[axis]}: {words}", quote=False)
                    + "<extra></extra>",
                )
            )
    base = html.escape(group.baseline.label, quote=False)
    shape = layout(f"speedup over {base}<br>(arrow: a miss, or a bound)", "")
    ticks = _powers_of_two(left, right)
    edge = 0.015 * math.log10(right / left)  # for the arrows at the ends
    span = [math.log10(left) - edge, math.log10(right) + edge]
    shape["xaxis"] |= {"type": "log", "range": span, "tickangle": 0}
    shape["xaxis"] |= {"tickvals": ticks, "ticktext": [f"{tick:g}×" for tick in ticks]}
    middles = [row * (len(axes) + 1) + (len(axes) - 1) / 2 for row in range(len(methods))]
    names = [html.escape(m.label, quote=False).replace(" + ", "<br>+ ") for m in methods]
    num_lines = len(methods) * (len(axes) + 1)
    shape["yaxis"] |= {"tickvals": middles, "ticktext": names, "range": [num_lines - 1, -1]}
    shape["yaxis"]["showgrid"] = False
    shape["margin"] |= {"r": 48, "b": 64}  # the last number may stand beyond the edge
    shape["height"] = 150 + 20 * (num_lines + 1)
    shape["hovermode"] = "closest"
    shape["shapes"] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1,
         "line": {"dash": "dot", "width": 1.5, "color": "#8a8f98"}}
    ]  # fmt: skip
    return go.Figure(data, shape)


def _has_point(result: stats.Speedup | None) -> bool:
    return result is not None and math.isfinite(result.ratio) and result.ratio > 0


def _speedup_range(shown: Sequence[stats.Speedup | None]) -> tuple[float, float]:
    """Ends of the axis: every finite point and end lies inside, and so do 0.5× and 2×."""
    ends = [value for result in shown if result is not None
            for value in (result.ratio, result.low, result.high)]  # fmt: skip
    inside = [value for value in ends if math.isfinite(value) and value > 0]
    left, right = min([0.5, *inside]), max([2.0, *inside])
    room = (right / left) ** 0.08
    return left / room, right * room


def _speedup_line(
    result: stats.Speedup | None, symbol: str, ink: str, left: float, right: float
) -> dict[str, Any]:
    """Places, marks and words of one speedup: its interval, and the point on it."""
    if result is None or not _has_point(result):
        words = " not logged" if result is None else f" {ratio_text(result)}"
        return {"x": [1.0], "mode": "text", "text": [words], "textposition": "middle right"}
    x, marks = [result.ratio], [symbol]
    if not math.isnan(result.low):
        missed, endless = result.low == 0.0, math.isinf(result.high)
        x = [left if missed else result.low, result.ratio, right if endless else result.high]
        marks = ["triangle-left" if missed else "line-ns-open", symbol,
                 "triangle-right" if endless or result.high_bound else "line-ns-open"]  # fmt: skip
    point = f"{'≥ ' if result.lower_bound else ''}{result.ratio:.2f}×"
    return {
        "x": x,
        "mode": "lines+markers+text",
        "text": [""] * (len(x) - 1) + [f"  {point}"],
        "textposition": "middle right",
        "line": {"color": ink, "width": 2},
        "marker": {"symbol": marks, "size": 8, "color": ink, "line": {"width": 2, "color": ink}},
    }


def _powers_of_two(left: float, right: float) -> list[float]:
    """At most nine ticks between the ends, 1 among them."""
    low, high = math.ceil(math.log2(left)), math.floor(math.log2(right))
    every = -(-(high - low + 1) // 9)
    return [2.0**power for power in range(low, high + 1) if power % every == 0]


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
