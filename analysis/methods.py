"""From runs to methods: which runs are seeds of the same setting, and what it is called.

A method is the optimizer's name plus the mask when there is one (`mezo`, `mezo + small_weights
0.75`): Sparse-MeZO is a mask on MeZO, not an optimizer of its own. Runs of one label that differ
only in the learning rate are a grid, of which the rate best on dev stands for the method; any
other difference makes a method of its own, with the difference in its label (see `variants`).

Only finished runs count. What a killed run leaves behind differs between the two sources, so no
number may hang on it; unfinished runs are named in the notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from analysis import DEFAULT_BASELINE
from analysis.curves import Curve, curves_of
from analysis.runs import Runs, is_zero_shot
from analysis.targets import FINAL, Target
from analysis.variants import Variant, variants, without_twins
from zolab.errors import UserError, nearest


@dataclass(frozen=True)
class Method:
    """All seeds of one setting.

    Attributes:
        label: name for tables.
        lr: the learning rate of these runs, None without training.
        lr_scores: learning rate to (finished runs, mean best dev value) of every rate tried.
        selected_by: dev key by which the rate was chosen.
        zero_shot: no training: a constant.
        first_order: trained by back-propagation.
        optimizer: name of the optimizer, without its mask.
        mask: name of the mask, "none" for all weights.
        share: share of the weights that the mask freezes.
        config: resolved config of one of the runs, dotted key to text.
        done: finished runs by seed.
        unfinished: runs of that rate that began and have no final row: told, but in no number.
    """

    label: str
    lr: float | None
    lr_scores: dict[float, tuple[int, float]]
    selected_by: str
    zero_shot: bool
    first_order: bool
    optimizer: str
    mask: str
    share: float
    config: dict[str, str]
    done: tuple[Curve, ...]
    unfinished: tuple[Curve, ...]


@dataclass(frozen=True)
class Group:
    """One model on one task.

    Attributes:
        model: model name.
        task: task name.
        metric: what is compared, e.g. "accuracy" (keys "dev/accuracy" and "test/accuracy").
        methods: without training first, then the baseline, then the rest by label, back-propagation
            last.
        baseline: the method the others are compared with, if it was run here.
        target: rule for the level of time-to-target tables.
    """

    model: str
    task: str
    metric: str
    methods: tuple[Method, ...]
    baseline: Method | None
    target: Target = FINAL

    @property
    def higher_is_better(self) -> bool:
        """False for a loss."""
        return self.metric != "loss"

    @property
    def trained(self) -> tuple[Method, ...]:
        """The methods that train."""
        return tuple(method for method in self.methods if not method.zero_shot)


def group_runs(
    runs: Runs, baseline: str | None = None, target: Target = FINAL, metric: str | None = None
) -> tuple[list[Group], list[str]]:
    """Sort runs into models × tasks × methods.

    Args:
        runs: what a reader returned.
        baseline: label of the method to compare with; None means "mezo" where it was run.
        target: rule for the level of time-to-target tables.
        metric: what to compare, e.g. "f1", where a group logged it; None means accuracy, or what
            there is.

    Returns:
        The groups that have a finished run, by model and task, and sentences for the notes.

    Raises:
        UserError: no finished run at all, or the named baseline or metric was not run.
    """
    table = runs.runs
    if not (table["state"] == "done").any():
        seen = ", ".join(
            f"{row['run_id']} ({_progress(row)})" for row in table.head(5).iter_rows(named=True)
        )
        raise UserError(f"no finished run among {table.height}: {seen}")
    curves = curves_of(runs)
    notes: list[str] = []
    parts: list[tuple[str, str, list[Method]]] = []
    for (model, task), rows in table.group_by(["model", "task"], maintain_order=True):
        methods = _methods(rows, curves, notes, f"{model} on {task}")
        if methods:
            parts.append((str(model), str(task), methods))
    parts.sort(key=lambda part: part[:2])
    chosen = {(m, t): _find_baseline(methods, baseline) for m, t, methods in parts}
    if baseline is not None and not any(chosen.values()):
        labels = sorted({m.label for _, _, methods in parts for m in methods if not m.zero_shot})
        hint = nearest(baseline, labels)
        raise UserError(
            f"--baseline={baseline}: no finished run of that method{hint}; "
            f"there is {', '.join(labels) or 'none that trains'}"
        )
    logged = {(model, task): _metrics(methods) for model, task, methods in parts}
    known = sorted(set().union(*logged.values()))
    if metric is not None and metric not in known:
        raise UserError(
            f"--metric={metric}: no finished run logged dev/{metric}{nearest(metric, known)}; "
            f"there is {', '.join(known) or 'none'}"
        )
    groups = []
    for model, task, methods in parts:
        base, own = chosen[model, task], logged[model, task]
        if metric is not None and metric not in own:
            notes.append(f"{model} on {task}: no dev/{metric}; compared by {_metric(own)}")
        if base is None:
            missing = baseline or DEFAULT_BASELINE
            notes.append(
                f"{model} on {task}: no one finished method is called {missing}: no speedup"
            )
        methods.sort(key=lambda m, base=base: (_rank_in_table(m, base), m.label))
        groups.append(Group(model, task, _metric(own, metric), tuple(methods), base, target))
    return groups, notes


def _progress(row: dict[str, Any]) -> str:
    text = f"{row['state']}, step {row['last_step']} of {row['train_steps']}"
    return f"{text}, {row['reported']}" if row["reported"] else text


def _find_baseline(methods: list[Method], name: str | None) -> Method | None:
    """The method called `name`; a longer label counts when it is the only one that begins so."""
    name = name or DEFAULT_BASELINE
    trained = [method for method in methods if not method.zero_shot]
    exact = [method for method in trained if method.label == name]
    longer = [method for method in trained if method.label.startswith(f"{name}, ")]
    found = exact or longer
    return found[0] if len(found) == 1 else None


def _rank_in_table(method: Method, baseline: Method | None) -> int:
    return 0 if method.zero_shot else 1 if method is baseline else 3 if method.first_order else 2


def _metrics(methods: list[Method]) -> set[str]:
    return {key.removeprefix("dev/") for m in methods for curve in m.done for key in curve.dev}


def _metric(names: set[str], wanted: str | None = None) -> str:
    """The wanted one, else accuracy if it was logged, else the first other key, else the loss."""
    if wanted in names:
        return wanted
    if "accuracy" in names:
        return "accuracy"
    return min(names - {"loss"}, default="loss")


def _methods(
    rows: pl.DataFrame, curves: dict[str, Curve], notes: list[str], where: str
) -> list[Method]:
    """The methods of one model and task that have a finished run."""
    table = list(rows.iter_rows(named=True))
    for key in ("model.path", "task.path"):
        paths = {row.get(f"config.{key}") for row in table if row["state"] == "done"}
        if len(paths) > 1:
            notes.append(f"{where}: {key} differs between runs; taken for the same files, moved")
    idle = [row["run_id"] for row in table if row["run_id"] not in curves]
    if idle:
        notes.append(f"{where}: {_ids(idle)} logged no row and count nowhere")
    methods = []
    for variant in variants([row for row in table if row["run_id"] in curves]):
        about = f"{where}, {variant.label}"
        if variant.unfinished:
            ids = _ids([row["run_id"] for row in variant.unfinished])
            begun = "unfinished, in no number" if variant.done else "no finished run"
            notes.append(f"{about}: {begun} ({ids})")
        if not variant.done:
            continue
        variant.done, twins = without_twins(variant.done)
        if twins:
            ids = _ids([row["run_id"] for row in twins])
            notes.append(f"{about}: {ids} not counted: the same seed with an explicit placement is")
        method = _one_method(variant, curves)
        seeds = [curve.seed for curve in method.done]
        if len(set(seeds)) < len(seeds):
            notes.append(
                f"{about}: several runs of one seed and one config; data or model files changed "
                "between them, all are counted"
            )
        methods.append(method)
    return methods


def _ids(run_ids: Sequence[str]) -> str:
    """For a note: "run aa", "2 runs: aa, bb"."""
    if len(run_ids) == 1:
        return f"run {run_ids[0]}"
    return f"{len(run_ids)} runs: {', '.join(run_ids)}"


def _one_method(variant: Variant, curves: dict[str, Curve]) -> Method:
    """Choose the learning rate and gather its seeds."""
    first = variant.done[0]
    zero_shot = is_zero_shot(first["optimizer"], first["optimizer_target"])
    by_lr: dict[float | None, list[Curve]] = {}
    seen: set[int] = set()
    for members in (variant.done, variant.unfinished):
        for member in sorted(members, key=lambda m: (m["seed"], m["run_id"])):
            if zero_shot and member["seed"] in seen:
                continue  # the same evaluation, queued once per sparsity or step count of a grid
            seen.add(member["seed"])
            lr = None if zero_shot else member["lr"]
            by_lr.setdefault(lr, []).append(curves[member["run_id"]])
    by_accuracy = first.get("config.train.select_by") == "accuracy"
    key = "dev/accuracy" if by_accuracy else "dev/loss"
    scores = {lr: _score(group, key, by_accuracy) for lr, group in by_lr.items()}
    # Finished seeds first: a rate that lost seeds must not win by the ones that survived.
    best = min(scores, key=lambda lr: (-scores[lr][0], _rank(scores[lr][1], by_accuracy), lr or 0))
    return Method(
        label=variant.label,
        lr=best,
        lr_scores={lr: scores[lr] for lr in sorted(k for k in scores if k is not None)},
        selected_by=key,
        zero_shot=zero_shot,
        first_order=".baselines." in first["optimizer_target"] and not zero_shot,
        optimizer=first["optimizer"],
        mask=first["sparsity"],
        share=first["sparsity_share"],
        config={k[7:]: v for k, v in first.items() if k.startswith("config.") and v is not None},
        done=tuple(curve for curve in by_lr[best] if curve.done),
        unfinished=tuple(curve for curve in by_lr[best] if not curve.done),
    )


def _score(group: list[Curve], key: str, by_accuracy: bool) -> tuple[int, float]:
    """(finished runs, mean over them of the best dev value); NaN if one had no finite value."""
    best = []
    for curve in group:
        values = curve.dev.get(key, np.empty(0))
        finite = values[np.isfinite(values)]
        if curve.done:
            best.append((finite.max() if by_accuracy else finite.min()) if finite.size else np.nan)
    return len(best), float(np.mean(best)) if best else float("nan")


def _rank(score: float, by_accuracy: bool) -> float:
    if np.isnan(score):
        return float("inf")
    return -score if by_accuracy else score
