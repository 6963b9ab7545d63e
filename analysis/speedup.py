"""How much sooner than the baseline a method reaches the baseline's final level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis import stats
from analysis.convergence import final_values
from analysis.methods import Curve, Group, Method
from analysis.tables import FORWARDS_NOTE, Table, count, level, unit

COLUMNS = (
    "model", "task", "baseline", "key", "target", "method", "lr", "axis", "num_runs", "reached",
    "median_to_target", "baseline_median", "speedup", "ci_low", "ci_high", "ci_high_bound",
    "lower_bound", "rule", "run_ids",
)  # fmt: skip
#: Axis of a run's cost to its heading.
AXES = {
    "step": "steps",
    "forwards_total": "forwards",
    "train_seconds": "seconds",
    "gpu_seconds": "GPU hours",
}


def target_level(group: Group) -> float | None:
    """The level to reach by the group's rule, see `targets.Target`.

    None without a baseline, or when it did not end at a finite level.
    """
    if group.baseline is None:
        return None
    key = f"dev/{group.metric}"
    final = stats.mean(final_values(group.baseline, key))
    start = stats.mean([c.dev[key][0] for c in group.baseline.done if key in c.dev])
    target = group.target.level(start, final)
    return target if math.isfinite(target) and math.isfinite(final) else None


def times_to_target(group: Group, method: Method, axis: str, target: float) -> list[float]:
    """Cost at which each finished run first reached the target, infinity for a miss."""
    key = f"dev/{group.metric}"
    return [
        stats.time_to_target(
            curve.costs[axis], curve.dev[key], target, higher_is_better=group.higher_is_better
        )
        for curve in _usable(method, key, axis)
    ]


def _usable(method: Method, key: str, axis: str) -> list[Curve]:
    return [curve for curve in method.done if key in curve.dev and axis in curve.costs]


def compare(
    group: Group, method: Method, axis: str, target: float, *, strict: bool = False
) -> stats.Speedup | None:
    """One method against the baseline on one axis; None when the axis was not logged.

    With `strict`, unfinished runs count as misses, whatever they had reached.
    """
    base, key = group.baseline, f"dev/{group.metric}"
    if base is None or not _usable(method, key, axis) or not _usable(base, key, axis):
        return None
    budget = float(np.mean([curve.costs[axis][-1] for curve in _usable(base, key, axis)]))
    own, other = (
        times_to_target(group, m, axis, target) + [math.inf] * (len(m.unfinished) * strict)
        for m in (method, base)
    )
    result = stats.speedup(own, other, budget)
    if method is base:  # 1 by definition: seeds drawn twice would give it an interval
        return replace(result, low=math.nan, high=math.nan, high_bound=False)
    return result


def csv_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per model, task, method that trains, and axis (see `COLUMNS`).

    `median_to_target` and `baseline_median` are infinite when half or more of the runs missed.
    `speedup` is baseline median / method median; 0 for a method that missed. With `ci_high_bound`
    the upper end is at least `ci_high`. When the baseline
    itself missed, its whole budget stands in, and `lower_bound` is true.
    """
    rows = []
    for group in groups:
        target, base = target_level(group), group.baseline
        if target is None or base is None:
            continue
        for method in group.trained:
            for axis in AXES:
                result = compare(group, method, axis, target)
                own = compare(group, base, axis, target)
                if result is None or own is None:
                    continue
                rows.append(
                    {
                        "model": group.model,
                        "task": group.task,
                        "baseline": base.label,
                        "key": f"dev/{group.metric}",
                        "target": target,
                        "method": method.label,
                        "lr": method.lr,
                        "axis": axis,
                        "num_runs": result.num_runs,
                        "reached": result.reached,
                        "median_to_target": result.median,
                        "baseline_median": own.median,
                        "speedup": result.ratio,
                        "ci_low": result.low,
                        "ci_high": result.high,
                        "ci_high_bound": result.high_bound,
                        "lower_bound": result.lower_bound,
                        "rule": group.target.rule,
                        "run_ids": " ".join(c.run_id for c in method.done),
                    }
                )
    return rows


def ratio_text(result: stats.Speedup) -> str:
    """For a cell: "1.82× [1.20, 2.50]", "≥ 1.82×" when the baseline missed, or "not reached"."""
    if math.isinf(result.median):
        return "not reached"
    if math.isnan(result.ratio) or math.isinf(result.ratio):
        return "at the start"
    text = f"{'≥ ' if result.lower_bound else ''}{result.ratio:.2f}×"
    if math.isnan(result.low):
        return text
    high = "∞" if math.isinf(result.high) else f"{result.high:.2f}"
    high = f"≥ {high}" if result.high_bound else high
    return f"{text} [{'missed' if result.low == 0 else f'{result.low:.2f}'}, {high}]"


def speedup_table(group: Group) -> Table | None:
    """Reached k of n, median cost and speedup on every axis; None when there is no target."""
    target, base = target_level(group), group.baseline
    if target is None or base is None:
        return None
    axes = [axis for axis in AXES if compare(group, base, axis, target) is not None]
    headers = ["method", "reached"]
    for axis in axes:
        headers += [AXES[axis], "speedup"]
    rows = []
    for method in group.trained:
        results = {axis: compare(group, method, axis, target) for axis in axes}
        known = [result for result in results.values() if result is not None]
        reached = f"{known[0].reached} of {known[0].num_runs}" if known else "–"
        if method.unfinished:
            reached += f" (+ {len(method.unfinished)} unfinished)"
        row = [method.label, reached]
        for axis, result in results.items():
            if result is None:
                row += ["–", "–"]
            else:
                row += [_cost(result.median, axis), ratio_text(result)]
        rows.append(row)
    shown = level(target, group.metric) + unit(group.metric)
    notes = [
        f"Target: dev {group.metric} {shown}, {group.target.words(base.label)}. A run's cost is "
        "that of its first evaluation at or beyond it; a run that never gets there is a miss and "
        "counts as infinite. Cost: median over the finished runs; “not reached” when half or more "
        f"of them missed. Speedup: median of {base.label} / median of the method; in brackets its "
        "95% bootstrap interval over both methods' seeds, from "
        f"{stats.MIN_SEEDS_FOR_INTERVAL} seeds on; “missed”: in the samples at that end half or "
        "more of the method's runs missed.",
        FORWARDS_NOTE + " Seconds are training time without evaluation, as measured on the "
        "machine at the time; they compare only between runs of one machine under equal load.",
    ]
    if any("[" in cell and "≥" in cell.partition("[")[2] for row in rows for cell in row):
        notes.append(
            f"“≥” at the upper end of an interval: in the samples at that end {base.label} missed "
            "in half or more of its seeds; its whole budget stands in, so the end is at least this."
        )
    if any(cell.startswith("≥") for row in rows for cell in row):
        notes.append(
            f"“≥”: {base.label} itself missed its mean level in half or more of its seeds; its "
            "whole budget stands in for its median, so the speedup is at least this."
        )
    if any(method.unfinished for method in group.trained):
        notes.append(_unfinished_note(group, axes, target))
    return Table(f"Cost of reaching dev {group.metric} {shown}", headers, rows, notes)


def _unfinished_note(group: Group, axes: Sequence[str], target: float) -> str:
    """What the table would say if unfinished runs counted: no method may gain by failing unseen."""
    changed = []
    for method in group.trained:
        now = [compare(group, method, axis, target) for axis in axes]
        strict = [compare(group, method, axis, target, strict=True) for axis in axes]
        if [r and ratio_text(r) for r in now] != [r and ratio_text(r) for r in strict]:
            texts = dict.fromkeys(ratio_text(result) for result in strict if result is not None)
            changed.append(f"{method.label}: {' / '.join(texts)}")
    return (
        "Unfinished runs are in no number, because local and wandb logs need not hold the same of "
        "a killed run. Counted as misses, they would "
        + (f"make the speedup {'; '.join(changed)}." if changed else "change no speedup.")
    )


def _cost(median: float, axis: str) -> str:
    if math.isinf(median):
        return "∞"
    if axis == "gpu_seconds":
        return f"{median / 3600:,.3f}"
    return f"{median:,.1f}" if axis == "train_seconds" else count(median)
