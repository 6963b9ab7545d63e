"""How good a method is after how many forwards, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis import stats
from analysis.methods import Curve, Group, Method
from analysis.stats import Array
from analysis.tables import (
    FORWARDS_NOTE,
    Table,
    count,
    interval,
    level,
    level_sd,
    metric_name,
    rate,
)

COLUMNS = (
    "model", "task", "method", "lr", "point", "forwards", "key", "num_runs", "num_nonfinite",
    "mean", "sd", "ci_low", "ci_high", "run_ids",
)  # fmt: skip
DEMONSTRATIONS = "test/demonstrations"
#: Smallest budget point as a share of the reference's budget: 1/16.
_HALVINGS = 4


def budget_points(group: Group) -> list[float]:
    """Budgets in forwards at which methods are compared, chosen from the data alone.

    The start, and the evaluations at or below 1/16, 1/8, 1/4, 1/2 and all of the budget of the
    reference: the baseline, or without one the method with the largest budget.

    Returns:
        Increasing numbers of forwards; empty when nothing was trained or forwards were not logged.
    """
    grids = {
        method.label: method.done[0].costs["forwards_total"]
        for method in group.trained
        if "forwards_total" in method.done[0].costs
    }
    if not grids:
        return []
    if group.baseline is not None and group.baseline.label in grids:
        grid = grids[group.baseline.label]
    else:
        grid = max(grids.values(), key=lambda candidate: (candidate[-1], len(candidate)))
    wanted = [grid[-1] / 2**k for k in range(_HALVINGS + 1)]
    reached = {float(grid[grid <= want].max(initial=grid[0])) for want in wanted}
    return sorted(reached | {float(grid[0])})


def value_at(curve: Curve, key: str, forwards: float) -> float | None:
    """The value at the last evaluation within a budget, None if the run ended before it.

    It is the value of the weights at that moment, not the best so far.
    """
    if key not in curve.dev or "forwards_total" not in curve.costs:
        return None
    cost = curve.costs["forwards_total"]
    within = np.flatnonzero(cost <= forwards)
    if not within.size or forwards > cost[-1]:
        return None
    return float(curve.dev[key][within[-1]])


def final_values(method: Method, key: str) -> Array:
    """Shape (num_done,): the value at each finished run's last evaluation (test: as read)."""
    if key.startswith("test/"):
        return np.array([curve.test[key] for curve in method.done if key in curve.test])
    return np.array([curve.dev[key][-1] for curve in method.done if key in curve.dev])


def best_values(method: Method, key: str) -> Array:
    """Shape (num_done,): each finished run's best value over its evaluations, NaN if none."""
    best = []
    for curve in method.done:
        finite = curve.dev[key][np.isfinite(curve.dev[key])] if key in curve.dev else np.empty(0)
        reduce = np.min if key == "dev/loss" else np.max
        best.append(float(reduce(finite)) if finite.size else float("nan"))
    return np.array(best)


def mean_curve(method: Method, key: str, axis: str) -> tuple[Array, Array, Array]:
    """Mean over seeds along an axis, for plots.

    Points are the steps at which every finished seed was evaluated; the cost at a step is the mean
    over seeds (seconds differ between them).

    Returns:
        (cost, mean, sd), each of shape (num_points,); sd is 0 for one seed. Empty when the axis or
        the key was not logged.
    """
    curves = [curve for curve in method.done if axis in curve.costs and key in curve.dev]
    if not curves:
        return np.empty(0), np.empty(0), np.empty(0)
    steps = curves[0].costs["step"]
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.costs["step"])
    picks = [np.searchsorted(curve.costs["step"], steps) for curve in curves]
    cost = np.mean([c.costs[axis][p] for c, p in zip(curves, picks, strict=True)], axis=0)
    values = np.stack([c.dev[key][p] for c, p in zip(curves, picks, strict=True)])
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(steps.size)
    return cost, values.mean(axis=0), spread


def csv_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per model, task, method, point and key (see `COLUMNS`).

    `point` is "budget" (value at `forwards`), "last" (last evaluation), "best" (best evaluation of
    each run) or "test" (test set at the run's best dev point). Values are as logged: an accuracy
    is 0 to 1. `num_runs` counts finished runs, `num_nonfinite` those among them with a NaN or
    infinite value, which makes the mean NaN.
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        points = budget_points(group)
        metrics = dict.fromkeys((group.metric, "loss"))
        for method in group.methods:
            for metric in metrics:
                key = f"dev/{metric}"
                for forwards in points:
                    rows.append(
                        _record(group, method, "budget", forwards, key, _at(method, key, forwards))
                    )
                final = final_values(method, key)
                rows.append(_record(group, method, "last", None, key, final))
                rows.append(_record(group, method, "best", None, key, best_values(method, key)))
                test = final_values(method, f"test/{metric}")
                rows.append(_record(group, method, "test", None, f"test/{metric}", test))
    return [row for row in rows if row["num_runs"]]


def _at(method: Method, key: str, forwards: float) -> Array:
    """Values of the finished runs at a budget; a method without training is a constant."""
    if method.zero_shot:
        return final_values(method, key)
    values = [value_at(curve, key, forwards) for curve in method.done]
    return np.array([value for value in values if value is not None])


def _record(
    group: Group, method: Method, point: str, forwards: float | None, key: str, values: Array
) -> dict[str, Any]:
    low, high = stats.mean_interval(values)
    return {
        "model": group.model,
        "task": group.task,
        "method": method.label,
        "lr": method.lr,
        "point": point,
        "forwards": forwards,
        "key": key,
        "num_runs": int(values.size),
        "num_nonfinite": int(np.count_nonzero(~np.isfinite(values))),
        "mean": stats.mean(values),
        "sd": stats.sd(values),
        "ci_low": low,
        "ci_high": high,
        "run_ids": " ".join(curve.run_id for curve in method.done),
    }


def main_table(group: Group) -> Table:
    """The table a reader sees first: test at the best dev point, and the gain over zero-shot."""
    metric, key = group.metric, f"test/{group.metric}"
    constants = [method for method in group.methods if method.zero_shot]
    headers = ["method", f"test {metric_name(metric)}", "95% interval"]
    headers += [f"over {constant.label}" for constant in constants]
    headers += ["dev, best", "dev, last", "seeds", "lr"]
    rows = []
    for method in group.methods:
        values = final_values(method, key)
        row = [method.label + _demonstrations(method)]
        row += [level_sd(stats.mean(values), stats.sd(values), metric) if values.size else "–"]
        row += [interval(*stats.mean_interval(values), metric)]
        row += [_gain(method, constant, key, metric) for constant in constants]
        for dev in (best_values(method, f"dev/{metric}"), final_values(method, f"dev/{metric}")):
            row.append(level_sd(stats.mean(dev), stats.sd(dev), metric) if dev.size else "–")
        rows.append([*row, _seeds(method), _lr(method)])
    notes = [
        f"Mean ± standard deviation over seeds of test {metric} at each run's best dev point, read "
        f"once. Intervals: 95% bootstrap over seeds ({stats.BOOTSTRAP_DRAWS:,} draws, fixed seed); "
        f"rough with few seeds, none below {stats.MIN_SEEDS_FOR_INTERVAL}; they do not cover the "
        "choice of the test rows.",
    ]
    if constants:
        notes.append("“over …”: difference of the means, and its 95% interval.")
    if any("small_weights" in method.label for method in group.methods):
        notes.append(
            "Sparse-MeZO is a mask on MeZO, not an optimizer of its own: the row "
            "“mezo + small_weights”. The number behind a mask is the share of weights frozen."
        )
    if any(method.unfinished for method in group.methods):
        notes.append("“of k”: k runs began; the means are over the finished ones.")
    return Table(f"{group.model} on {group.task}", headers, rows, notes)


def _demonstrations(method: Method) -> str:
    """How many answered examples stood before a question: " (9.3 demonstrations)", or ""."""
    fitted = [c.test[DEMONSTRATIONS] for c in method.done if DEMONSTRATIONS in c.test]
    return f" ({stats.mean(np.array(fitted)):.3g} demonstrations)" if fitted else ""


def _lr(method: Method) -> str:
    tried = len(method.lr_scores)
    return rate(method.lr) + (f" (1 of {tried})" if tried > 1 else "")


def _seeds(method: Method) -> str:
    done = len(method.done)
    return f"{done} of {done + len(method.unfinished)}" if method.unfinished else str(done)


def _gain(method: Method, constant: Method, key: str, metric: str) -> str:
    values, reference = final_values(method, key), final_values(constant, key)
    if method.zero_shot or not values.size or not reference.size:
        return "–"
    difference = stats.mean(values) - stats.mean(reference)
    if np.isnan(difference):
        return "–"
    shown = interval(*stats.difference_interval(values, reference), metric, sign=True)
    return f"{level(difference, metric, sign=True)} {shown}"


def budget_table(group: Group) -> Table | None:
    """Dev metric at the budget points, or None when there are none."""
    points = budget_points(group)
    if not points:
        return None
    key = f"dev/{group.metric}"
    rows = []
    for method in group.methods:
        row = [method.label]
        for forwards in points:
            values = _at(method, key, forwards)
            cell = level_sd(stats.mean(values), stats.sd(values), group.metric)
            short = 0 < values.size < len(method.done)
            row.append(f"{cell} (n={values.size})" if short else cell if values.size else "–")
        rows.append(row)
    notes = [
        f"Dev {group.metric} of the weights at the last evaluation within the budget (not the best "
        "so far), mean ± standard deviation over seeds; “–”: the runs ended before. Without "
        "training it is a constant.",
        FORWARDS_NOTE,
    ]
    headers = ["method", *(count(forwards) for forwards in points)]
    title = f"Dev {metric_name(group.metric)} after so many forwards"
    return Table(title, headers, rows, notes)


def rate_table(group: Group) -> Table | None:
    """The learning rates tried and what chose among them, or None if no method had a choice."""
    if all(len(method.lr_scores) < 2 for method in group.trained):
        return None
    rows = []
    for method in group.trained:
        for lr, (num_done, score) in method.lr_scores.items():
            shown = level(score, method.selected_by.removeprefix("dev/"))
            chosen = "chosen" if lr == method.lr else ""
            rows.append([method.label, rate(lr), str(num_done), shown, chosen])
    key = group.trained[0].selected_by
    notes = [
        f"The rate with the most finished seeds and the best mean of each run's best {key} stands "
        "for the method; test values had no part in it."
    ]
    if len({len(method.lr_scores) for method in group.trained}) > 1:
        notes.append("The grids differ in size: more tries favour the method with the larger one.")
    return Table("Learning rates tried", ["method", "lr", "finished", key, ""], rows, notes)
