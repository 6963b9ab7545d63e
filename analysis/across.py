"""Tables over the tasks of a model, paired tests on a task, and the curve over sparsities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import aggregate, speedup, stats
from analysis.convergence import best_values, final_values
from analysis.methods import Group, Method
from analysis.stats import Array
from analysis.tables import Table, interval, level, level_sd, metric_name

TASK_COLUMNS = (
    "model", "method", "baseline", "num_tasks", "tasks", "iqm", "iqm_low", "iqm_high", "mean",
    "mean_rank", "p_better", "p_better_low", "p_better_high", "run_ids",
)  # fmt: skip
PAIRED_COLUMNS = (
    "model", "task", "method", "baseline", "key", "num_pairs", "mean_difference", "sd", "wins",
    "losses", "p_flip", "p_t", "run_ids",
)  # fmt: skip
SPARSITY_COLUMNS = (
    "model", "task", "optimizer", "mask", "share_frozen", "key", "num_runs", "mean", "sd",
    "ci_low", "ci_high", "lr", "run_ids",
)  # fmt: skip
#: Factors at which the profile over tasks is tabulated.
FACTORS = (1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class TaskSet:
    """The methods that one model was trained with on the same several tasks.

    Attributes:
        model: model name.
        tasks: task names.
        labels: methods with a finished run on every task, in table order.
        scores: label to one array per task, shape (num_runs,): the test metric, signed so that
            higher is better.
        methods: label to one `Method` per task.
        groups: the groups, one per task.
        baseline: label of the method compared with, None where it is not among the labels.
    """

    model: str
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    scores: dict[str, list[Array]]
    methods: dict[str, list[Method]]
    groups: tuple[Group, ...]
    baseline: str | None


def task_sets(groups: Sequence[Group]) -> list[TaskSet]:
    """One set for every model with two tasks or more and a method common to all of them."""
    by_model: dict[str, list[Group]] = {}
    for group in groups:
        by_model.setdefault(group.model, []).append(group)
    sets = []
    for model, own in by_model.items():
        if len(own) < 2:
            continue
        methods: dict[str, list[Method]] = {}
        for method in own[0].methods:
            found = [m for g in own for m in g.methods if m.label == method.label]
            known = [_scores(g, m) for g, m in zip(own, found, strict=False)]
            if len(found) == len(own) and all(scores.size for scores in known):
                methods[method.label] = found
        if methods:
            scores = {
                label: [_scores(g, m) for g, m in zip(own, found, strict=True)]
                for label, found in methods.items()
            }
            names = {group.baseline.label for group in own if group.baseline is not None}
            base = names.pop() if len(names) == 1 else None
            sets.append(
                TaskSet(
                    model,
                    tuple(group.task for group in own),
                    tuple(methods),
                    scores,
                    methods,
                    tuple(own),
                    base if base in methods else None,
                )
            )
    return sets


def _scores(group: Group, method: Method) -> Array:
    values = final_values(method, f"test/{group.metric}")
    return values if group.higher_is_better else -values


def task_rows(sets: Sequence[TaskSet]) -> list[dict[str, Any]]:
    """One record per model and method (see `TASK_COLUMNS`); scores as logged, 0 to 1."""
    rows = []
    for tasks in sets:
        means = np.array(
            [
                [stats.mean(tasks.scores[m][i]) for m in tasks.labels]
                for i in range(len(tasks.tasks))
            ]
        )
        places = aggregate.mean_ranks(means)
        for label, place in zip(tasks.labels, places, strict=True):
            own = tasks.scores[label]
            better = (math.nan,) * 3
            if tasks.baseline is not None and label != tasks.baseline:
                better = aggregate.probability_of_improvement(own, tasks.scores[tasks.baseline])
            low, high = stats.iqm_interval(own)
            rows.append(
                {
                    "model": tasks.model,
                    "method": label,
                    "baseline": tasks.baseline,
                    "num_tasks": len(tasks.tasks),
                    "tasks": " ".join(tasks.tasks),
                    "iqm": float(stats.iqm(np.concatenate(own))),
                    "iqm_low": low,
                    "iqm_high": high,
                    "mean": float(np.mean([stats.mean(task) for task in own])),
                    "mean_rank": float(place),
                    "p_better": better[0],
                    "p_better_low": better[1],
                    "p_better_high": better[2],
                    "run_ids": " ".join(
                        c.run_id for method in tasks.methods[label] for c in method.done
                    ),
                }
            )
    return rows


def task_table(tasks: TaskSet) -> Table:
    """IQM, mean, mean rank and probability of improvement over the tasks of a model."""
    metric = tasks.groups[0].metric
    base = tasks.baseline
    headers = ["method", f"IQM {metric_name(metric)}", "95% interval", "mean", "mean rank"]
    headers += [f"P(better than {base})"] * (base is not None)
    rows = []
    for row in task_rows([tasks]):
        cells = [row["method"], level(row["iqm"], metric)]
        cells += [interval(row["iqm_low"], row["iqm_high"], metric), level(row["mean"], metric)]
        cells.append(f"{row['mean_rank']:.2f}")
        if base is not None:
            shown = [f"{row[key]:.2f}" for key in ("p_better", "p_better_low", "p_better_high")]
            missing = math.isnan(row["p_better"])
            cells.append("–" if missing else f"{shown[0]} [{shown[1]}, {shown[2]}]")
        rows.append(cells)
    notes = [
        f"Over {', '.join(tasks.tasks)}; test at each run's best dev point; methods with finished "
        "runs on all of them. IQM: mean of the middle half of all runs; interval: 95% bootstrap, "
        "runs resampled within their task. Rank: of the mean over seeds on each task, 1 is best, "
        "ties share their places. P: chance that a run of the method beats one of the baseline on "
        "a task picked at random, ties half."
    ]
    return Table(f"{tasks.model} over {len(tasks.tasks)} tasks", headers, rows, notes)


def profile_costs(tasks: TaskSet, axis: str = "forwards_total") -> tuple[list[str], Array]:
    """Median cost to each task's target by method.

    Returns:
        (labels of methods that train, costs of shape (num_tasks with a target, num_labels)).
    """
    labels = [label for label in tasks.labels if not tasks.methods[label][0].zero_shot]
    table = []
    for i, group in enumerate(tasks.groups):
        target = speedup.target_level(group)
        if target is None:
            continue
        times = [
            speedup.times_to_target(group, tasks.methods[label][i], axis, target)
            for label in labels
        ]
        table.append([stats.median_with_misses(t) if t else math.inf for t in times])
    return labels, np.array(table).reshape(len(table), len(labels))


def profile_table(tasks: TaskSet) -> Table | None:
    """Share of tasks on which a method needs at most a factor of the quickest one's forwards."""
    labels, costs = profile_costs(tasks)
    if not costs.size:
        return None
    shares = aggregate.performance_profile(costs, FACTORS)
    solved = np.isfinite(costs).mean(axis=0)
    rows = [
        [label, *(f"{share:.0%}" for share in own), f"{end:.0%}"]
        for label, own, end in zip(labels, shares, solved, strict=True)
    ]
    notes = [
        f"Share of {len(costs)} tasks on which the method's median forwards to the target are "
        "within the factor of the quickest method's; “ever”: that reached it at all."
    ]
    headers = ["method", *(f"{factor:g}×" for factor in FACTORS), "ever"]
    return Table("Performance profile over tasks", headers, rows, notes)


# --- paired by seed ------------------------------------------------------------------------------


def paired_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per task and method that shares seeds with the baseline (see `PAIRED_COLUMNS`)."""
    rows = []
    for group in groups:
        base, key = group.baseline, f"test/{group.metric}"
        if base is None:
            continue
        theirs = {curve.seed: curve for curve in base.done if key in curve.test}
        for method in group.methods:
            ours = {curve.seed: curve for curve in method.done if key in curve.test}
            seeds = sorted(ours.keys() & theirs.keys())
            if method is base or method.zero_shot or not seeds:
                continue
            result = aggregate.paired(
                [ours[seed].test[key] for seed in seeds],
                [theirs[seed].test[key] for seed in seeds],
            )
            rows.append(
                {
                    "model": group.model,
                    "task": group.task,
                    "method": method.label,
                    "baseline": base.label,
                    "key": key,
                    "num_pairs": result.num_pairs,
                    "mean_difference": result.mean,
                    "sd": result.sd,
                    "wins": result.wins,
                    "losses": result.losses,
                    "p_flip": result.p_flip,
                    "p_t": result.p_t,
                    "run_ids": " ".join(
                        f"{ours[seed].run_id}-{theirs[seed].run_id}" for seed in seeds
                    ),
                }
            )
    return rows


def paired_table(group: Group) -> Table | None:
    """Differences to the baseline on the same seeds, with p-values; None without shared seeds."""
    records = paired_rows([group])
    if not records:
        return None
    rows = []
    for row in records:
        ties = row["num_pairs"] - row["wins"] - row["losses"]
        sd = "" if math.isnan(row["sd"]) else f" ± {level(row['sd'], group.metric)}"
        mean = row["mean_difference"]
        rows.append(
            [
                row["method"],
                "diverged" if math.isnan(mean) else level(mean, group.metric, sign=True) + sd,
                f"{row['wins']} / {ties} / {row['losses']}",
                str(row["num_pairs"]),
                *("–" if math.isnan(row[p]) else f"{row[p]:.3f}" for p in ("p_flip", "p_t")),
            ]
        )
    fewest = min(row["num_pairs"] for row in records)
    notes = [
        f"Test {group.metric} minus {records[0]['baseline']}'s on the same seed, mean ± standard "
        "deviation. p: two-sided, by flipping signs exactly and by Student's paired t; not "
        f"corrected for {len(records)} comparison(s). With {fewest} pairs the first cannot be "
        f"below {2 ** (1 - fewest):.3g}."
    ]
    headers = ["method", "difference", "won / tied / lost", "pairs", "p (flips)", "p (t)"]
    return Table(f"Paired with {records[0]['baseline']} by seed", headers, rows, notes)


# --- sparsity ------------------------------------------------------------------------------------


def sparsity_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per optimizer, mask and share frozen (see `SPARSITY_COLUMNS`).

    Only masks of which several shares were run; the optimizer without a mask stands as share 0.
    """
    rows = []
    for group in groups:
        families: dict[tuple[str, str], list[Method]] = {}
        for method in group.trained:
            if method.mask != "none":
                families.setdefault((method.optimizer, method.mask), []).append(method)
        for (optimizer, mask), members in sorted(families.items()):
            dense = [m for m in group.trained if m.optimizer == optimizer and m.mask == "none"]
            if len({method.share for method in members}) < 2:
                continue
            for method in sorted([*dense, *members], key=lambda m: (m.share, m.label)):
                for key, values in (
                    (f"test/{group.metric}", final_values(method, f"test/{group.metric}")),
                    (f"dev/{group.metric}", best_values(method, f"dev/{group.metric}")),
                ):
                    low, high = stats.mean_interval(values)
                    rows.append(
                        {
                            "model": group.model,
                            "task": group.task,
                            "optimizer": optimizer,
                            "mask": mask,
                            "share_frozen": method.share,
                            "key": key,
                            "num_runs": int(values.size),
                            "mean": stats.mean(values),
                            "sd": stats.sd(values),
                            "ci_low": low,
                            "ci_high": high,
                            "lr": method.lr,
                            "run_ids": " ".join(curve.run_id for curve in method.done),
                        }
                    )
    return rows


def sparsity_table(group: Group) -> Table | None:
    """Test metric over the share frozen, a row per mask; None without a sweep over shares."""
    records = [row for row in sparsity_rows([group]) if row["key"].startswith("test/")]
    if not records:
        return None
    shares = sorted({row["share_frozen"] for row in records})
    by_mask: dict[str, dict[float, str]] = {}
    for row in records:
        cells = by_mask.setdefault(f"{row['optimizer']} + {row['mask']}", {})
        cells[row["share_frozen"]] = level_sd(row["mean"], row["sd"], group.metric)
    rows = [[name, *(cells.get(share, "–") for share in shares)] for name, cells in by_mask.items()]
    notes = [
        f"Test {group.metric} at each run's best dev point over the share of weights frozen, mean "
        "± standard deviation over seeds; 0 is the optimizer without a mask. Each cell has its own "
        "learning rate, chosen on dev."
    ]
    headers = ["method", *(f"{share:g}" for share in shares)]
    return Table("Sparsity sweep: share frozen", headers, rows, notes)
