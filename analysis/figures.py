"""Static figures for papers and READMEs (matplotlib): SVG, PNG and PDF.

The same logs give the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from analysis import across, aggregate, speedup, stats
from analysis.convergence import final_values, mean_curve
from analysis.methods import Group
from analysis.plots import axis_title, lap
from analysis.speedup import compare, target_level
from analysis.tables import level, metric_name, scale, unit

_AXIS = "forwards_total"
#: Letters of a legend that fit in an inch.
_LETTERS = 14.0
_DASHES = ("--", ":", "-.", (0, (8, 3)), (0, (8, 3, 2, 3)))
_MARKERS = "osD^"
#: Metadata that would differ between two times of drawing.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def static_figures(groups: Sequence[Group], colour: dict[str, str]) -> dict[str, bytes]:
    """Convergence, speedup, sparsity and profile figures, each in three formats.

    Args:
        groups: what to draw; figures without data are left out.
        colour: colour of each method label.

    Returns:
        File name to content; empty when matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    trained = [group for group in groups if group.trained]
    swept = [group for group in groups if across.sparsity_rows([group])]
    compared = [group for group in trained if _speedups(group)]
    sets = [tasks for tasks in across.task_sets(groups) if across.profile_costs(tasks)[1].size]
    plans: list[tuple[str, Sequence[Any], Callable[[Any, Any, dict[str, str]], None]]] = [
        ("convergence", trained, _convergence),
        ("speedup", compared, _speedup),
        ("sparsity", swept, _sparsity),
        ("profile", sets, _profile),
    ]
    files: dict[str, bytes] = {}
    # A fixed salt makes the ids in an SVG the same every time; Type 42 keeps text in PDFs text.
    style = {"svg.hashsalt": "zolab", "pdf.fonttype": 42, "font.family": "DejaVu Sans"}
    defaults = {**matplotlib.rcParamsDefault, "backend": "agg", "font.size": 9, **style}
    with matplotlib.rc_context(defaults):
        for name, items, draw in plans:
            if not items:
                continue
            columns = min(len(items), 3)
            lines = -(-len(items) // columns)
            size = (max(7.2, 4.6 * columns), 4.2 * lines)
            figure = Figure(figsize=size, layout="constrained", facecolor="white")
            panels = figure.subplots(lines, columns, squeeze=False).ravel()
            for panel, item in zip(panels, items, strict=False):
                draw(panel, item, colour)
                panel.spines[["top", "right"]].set_visible(False)
                panel.grid(alpha=0.25)
            for panel in panels[len(items) :]:
                panel.set_axis_off()
            # One legend for all panels, below them: inside a panel it would cover a line.
            handles = {
                text: handle
                for panel in panels
                for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
            }
            widest = max((len(text) for text in handles), default=1)
            figure.legend(
                list(handles.values()), list(handles), loc="outside lower center",
                ncols=max(1, min(2 + columns, int(size[0] * _LETTERS / (widest + 6)))),
                frameon=False, fontsize=8,
            )  # fmt: skip
            for kind, metadata in _METADATA.items():
                buffer = io.BytesIO()
                dpi = {"dpi": 160} if kind == "png" else {}
                figure.savefig(buffer, format=kind, metadata=metadata, **dpi)
                files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def _convergence(panel: Any, group: Group, colour: dict[str, str]) -> None:
    """Lines with bands over forwards, constants dashed."""
    key, factor = f"dev/{group.metric}", scale(group.metric)
    for method in group.trained:
        cost, centre, spread = mean_curve(method, key, _AXIS)
        if not cost.size:
            continue
        ink, name = colour[method.label], _escape(method.label)
        low, high = (centre - spread) * factor, (centre + spread) * factor
        panel.fill_between(cost, low, high, color=ink, alpha=0.15, linewidth=0)
        again = lap(colour, method.label)
        panel.plot(
            cost, centre * factor, color=ink, label=name,
            marker=_MARKERS[again % len(_MARKERS)], markersize=5 if again else 3,
        )  # fmt: skip
    for i, method in enumerate(m for m in group.methods if m.zero_shot):
        height = stats.mean(final_values(method, key)) * factor
        style, name = _DASHES[i % len(_DASHES)], _escape(method.label)
        panel.axhline(height, color=colour[method.label], linestyle=style, label=name)
    panel.set_xlabel(axis_title(_AXIS))
    panel.set_ylabel(f"dev {metric_name(group.metric)}")
    panel.set_title(_escape(f"{group.model} on {group.task}"), fontsize=10)


def _speedups(group: Group) -> list[tuple[str, stats.Speedup]]:
    """Methods that are not the baseline with their speedup in forwards, where there is one."""
    target = target_level(group)
    if target is None or group.baseline is None:
        return []
    results = [(m.label, compare(group, m, _AXIS, target)) for m in group.trained]
    base = group.baseline.label
    return [(label, r) for label, r in results if r is not None and label != base]


def _speedup(panel: Any, group: Group, colour: dict[str, str]) -> None:
    """Points with intervals on a logarithmic axis; a miss is said in words."""
    results = _speedups(group)
    ratios = [r.high if math.isfinite(r.high) else r.ratio for _, r in results]
    finite = [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    left, right = 0.25, max(4.0, 1.3 * max(finite, default=1.0))
    names = []
    for row, (label, result) in enumerate(results):
        ink = colour[label]
        names.append(_escape(label))
        if not (math.isfinite(result.ratio) and result.ratio > 0):
            panel.text(1.0, row, f" {speedup.ratio_text(result)}", color=ink, va="center")
            continue
        if not math.isnan(result.low):
            # An end beyond the axis (a miss, or a baseline that misses) is an arrow at its edge.
            low, high = max(result.low, left), min(result.high, right)
            panel.plot([low, high], [row, row], color=ink, linewidth=2)
            for end, mark, beyond in (
                (low, "<", result.low < left),
                (high, ">", result.high > right or result.high_bound),
            ):
                if beyond:
                    panel.plot([end], [row], color=ink, marker=mark, markersize=8, clip_on=False)
        panel.plot([result.ratio], [row], color=ink, marker="o", linestyle="none")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    panel.set_xlim(left, right)
    panel.axvline(1.0, color="#8a8f98", linestyle=":", linewidth=1.2)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    base = "" if group.baseline is None else group.baseline.label
    aim = level(target_level(group) or 0.0, group.metric) + unit(group.metric)
    lines = (f"speedup in forwards over {base},", f"to dev {group.metric} {aim}")
    panel.set_xlabel("\n".join(map(_escape, lines)))
    panel.set_title(_escape(f"{group.model} on {group.task}"), fontsize=10)


def _sparsity(panel: Any, group: Group, colour: dict[str, str]) -> None:
    """Test metric over the share frozen, with intervals of one standard deviation."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in across.sparsity_rows([group]):
        if row["key"].startswith("test/"):
            lines.setdefault(f"{row['optimizer']} + {row['mask']}", []).append(row)
    inks = list(dict.fromkeys(colour.values()))
    factor = scale(group.metric)
    for number, (name, rows) in enumerate(lines.items()):
        panel.errorbar(
            [row["share_frozen"] for row in rows],
            [row["mean"] * factor for row in rows],
            yerr=[np.nan_to_num(row["sd"]) * factor for row in rows],
            color=inks[number % len(inks)], marker="o", markersize=4, capsize=3,
            label=_escape(name),
        )  # fmt: skip
    panel.set_xlabel("share of weights frozen (0: no mask)")
    panel.set_ylabel(f"test {metric_name(group.metric)}")
    panel.set_title(_escape(f"{group.model} on {group.task}"), fontsize=10)


def _profile(panel: Any, tasks: across.TaskSet, colour: dict[str, str]) -> None:
    """Steps: share of tasks within a factor of the quickest method."""
    labels, costs = across.profile_costs(tasks)
    factors = np.geomspace(1.0, 16.0, 129)
    shares = aggregate.performance_profile(costs, factors)
    for number, (label, share) in enumerate(zip(labels, shares, strict=True)):
        # Curves of few tasks often lie on one another: those below are wider, so that they show.
        width = 1.6 + 3.0 * (1.0 - (number + 1) / len(labels))
        panel.step(
            factors, share, where="post", color=colour[label], label=_escape(label), linewidth=width
        )
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlabel("forwards to the target, over the quickest method's")
    panel.set_ylabel("share of tasks")
    panel.set_title(_escape(tasks.model), fontsize=10)


def _escape(text: str) -> str:
    """Text that matplotlib neither reads as a formula nor, for a leading `_`, hides."""
    text = "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
