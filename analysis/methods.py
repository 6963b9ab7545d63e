"""From runs to methods: which runs are seeds of the same setting, and what it is called.

A method is the optimizer's name plus the mask when there is one (`mezo`, `mezo + small_weights
0.75`): Sparse-MeZO is a mask on MeZO, not an optimizer of its own. Runs of one label that differ
only in the learning rate are a grid, of which the rate best on dev stands for the method; any
other difference makes a method of its own, with the difference in its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from analysis import DEFAULT_BASELINE
from analysis.runs import Runs, is_zero_shot
from analysis.stats import Array
from zolab.errors import UserError, nearest
from zolab.tracking.schema import AXES

#: Config keys that do not make another method: where and how often, not what.
_NEUTRAL = (
    "seed", "run_root", "tracking", "launcher", "sweep", "model.name", "model.device", "task.name",
    "optimizer.name", "optimizer.lr", "sparsity.name", "sparsity.sparsity", "train.log_every",
    "train.checkpoint_minutes", "train.eval_batch_size",
)  # fmt: skip
#: What a run without training does not depend on, besides.
_NEUTRAL_ZERO_SHOT = ("train", "sparsity")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
        run_id: the run.
        seed: its seed.
        done: whether it has its final row.
        costs: axis name of `schema.AXES` to the cost at each evaluation, shape (num_evals,); an
            axis that was not logged is missing.
        dev: dev key to its value at each evaluation, shape (num_evals,), NaN where not logged.
        test: test key to its value, empty unless done.
        perf: time and memory of the run: "step_seconds" (median over the logged rows),
            "forward_share", "train_seconds", "peak_bytes"; what was not logged is missing.
    """

    run_id: str
    seed: int
    done: bool
    costs: dict[str, Array]
    dev: dict[str, Array]
    test: dict[str, float]
    perf: dict[str, float]


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
        done: finished runs by seed.
        unfinished: runs that began and have no final row.
    """

    label: str
    lr: float | None
    lr_scores: dict[float, tuple[int, float]]
    selected_by: str
    zero_shot: bool
    first_order: bool
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
    """

    model: str
    task: str
    metric: str
    methods: tuple[Method, ...]
    baseline: Method | None

    @property
    def higher_is_better(self) -> bool:
        """False for a loss."""
        return self.metric != "loss"

    @property
    def trained(self) -> tuple[Method, ...]:
        """The methods that train."""
        return tuple(method for method in self.methods if not method.zero_shot)


def group_runs(runs: Runs, baseline: str | None = None) -> tuple[list[Group], list[str]]:
    """Sort runs into models × tasks × methods.

    Args:
        runs: what a reader returned.
        baseline: label of the method to compare with; None means "mezo" where it was run.

    Returns:
        The groups that have a finished run, by model and task, and sentences for the notes.

    Raises:
        UserError: no finished run at all, or the named baseline was not run.
    """
    table = runs.runs
    if not (table["state"] == "done").any():
        seen = ", ".join(
            f"{row['run_id']} ({_progress(row)})" for row in table.head(5).iter_rows(named=True)
        )
        raise UserError(f"no finished run among {table.height}: {seen}")
    curves = _curves(runs)
    notes: list[str] = []
    parts: list[tuple[str, str, list[Method]]] = []
    for (model, task), rows in table.group_by(["model", "task"], maintain_order=True):
        methods = _methods(rows, curves, notes, f"{model} on {task}")
        if any(method.done for method in methods):
            parts.append((str(model), str(task), [m for m in methods if m.done]))
        notes.extend(
            f"{model} on {task}, {m.label}: no finished run" for m in methods if not m.done
        )
    parts.sort(key=lambda part: part[:2])
    chosen = {(m, t): _find_baseline(methods, baseline) for m, t, methods in parts}
    if baseline is not None and not any(chosen.values()):
        labels = sorted({m.label for _, _, methods in parts for m in methods if not m.zero_shot})
        hint = nearest(baseline, labels)
        raise UserError(
            f"--baseline={baseline}: no finished run of that method{hint}; "
            f"there is {', '.join(labels) or 'none that trains'}"
        )
    groups = []
    for model, task, methods in parts:
        base = chosen[model, task]
        if base is None:
            missing = baseline or DEFAULT_BASELINE
            notes.append(
                f"{model} on {task}: no one finished method is called {missing}: no speedup"
            )
        methods.sort(key=lambda m, base=base: (_rank_in_table(m, base), m.label))
        groups.append(Group(model, task, _metric(methods), tuple(methods), base))
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


def _metric(methods: list[Method]) -> str:
    """What to compare: accuracy if it was logged, else the first other dev key, else the loss."""
    names = {key.removeprefix("dev/") for m in methods for curve in m.done for key in curve.dev}
    if "accuracy" in names:
        return "accuracy"
    return min(names - {"loss"}, default="loss")


def _methods(
    rows: pl.DataFrame, curves: dict[str, Curve], notes: list[str], where: str
) -> list[Method]:
    """The methods of one model and task."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        if row["run_id"] in curves:  # otherwise it has not begun
            by_label.setdefault(_label(row), []).append(row)
    methods = []
    for label, members in by_label.items():
        zero_shot = is_zero_shot(members[0]["optimizer"], members[0]["optimizer_target"])
        for suffix, same in _variants(members, zero_shot):
            full = f"{label}, {suffix}" if suffix else label
            method = _one_method(full, same, curves, zero_shot)
            seeds = [curve.seed for curve in method.done]
            if len(set(seeds)) < len(seeds):
                notes.append(
                    f"{where}, {full}: several runs of one seed and one config; data or model "
                    "files changed between them, all are counted"
                )
            methods.append(method)
    return methods


def _label(row: dict[str, Any]) -> str:
    if row["sparsity"] == "none" or is_zero_shot(row["optimizer"], row["optimizer_target"]):
        return row["optimizer"]
    return f"{row['optimizer']} + {row['sparsity']} {row['sparsity_share']:g}"


def _variants(
    members: list[dict[str, Any]], zero_shot: bool
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Split runs of one label by the config keys in which they differ, with a text for each."""
    neutral = _NEUTRAL + (_NEUTRAL_ZERO_SHOT if zero_shot else ())
    keys = [
        key
        for key in members[0]
        if key.startswith("config.")
        and not any(key[7:] == name or key[7:].startswith(f"{name}.") for name in neutral)
        and len({member[key] for member in members}) > 1
    ]
    split: dict[str, list[dict[str, Any]]] = {}
    for member in members:
        text = ", ".join(
            f"{_short(key, keys)} {_last_word(member[key], key)}" for key in keys if member[key]
        )
        split.setdefault(text, []).append(member)
    return list(split.items())


def _last_word(value: str, key: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a config key, or all of it when two keys end alike."""

    def last(name: str) -> str:
        return name.removesuffix("._target_").rpartition(".")[2]

    return last(key) if sum(last(key) == last(other) for other in keys) == 1 else key[7:]


def _one_method(
    label: str, members: list[dict[str, Any]], curves: dict[str, Curve], zero_shot: bool
) -> Method:
    """Choose the learning rate and gather its seeds."""
    by_lr: dict[float | None, list[Curve]] = {}
    seen: set[int] = set()
    for member in sorted(members, key=lambda m: (m["seed"], m["run_id"])):
        if zero_shot and member["seed"] in seen:
            continue  # the same evaluation, queued once per sparsity or step count of a grid
        seen.add(member["seed"])
        lr = None if zero_shot else member["lr"]
        by_lr.setdefault(lr, []).append(curves[member["run_id"]])
    by_accuracy = members[0].get("config.train.select_by") == "accuracy"
    key = "dev/accuracy" if by_accuracy else "dev/loss"
    scores = {lr: _score(group, key, by_accuracy) for lr, group in by_lr.items()}
    # Finished seeds first: a rate that lost seeds must not win by the ones that survived.
    best = min(scores, key=lambda lr: (-scores[lr][0], _rank(scores[lr][1], by_accuracy), lr or 0))
    return Method(
        label=label,
        lr=best,
        lr_scores={lr: scores[lr] for lr in sorted(k for k in scores if k is not None)},
        selected_by=key,
        zero_shot=zero_shot,
        first_order=".baselines." in members[0]["optimizer_target"] and not zero_shot,
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


def _curves(runs: Runs) -> dict[str, Curve]:
    """Every run's evaluations, from the long table."""
    key = pl.col("key")
    wanted = runs.metrics.filter(
        key.is_in([*AXES, "perf/step_seconds", "perf/forward_seconds", "perf/peak_bytes"])
        | key.str.starts_with("dev/")
        | key.str.starts_with("test/")
    )
    wide = wanted.pivot(on="key", index=["run_id", "step"], values="value", sort_columns=True)
    axes = [name for name in AXES if name in wide.columns and name != "step"]
    dev = [name for name in wide.columns if name.startswith("dev/")]
    test = [name for name in wide.columns if name.startswith("test/")]
    # An evaluation row that did not log a cost has the cost of the last row before it.
    wide = wide.sort("run_id", "step").with_columns(
        pl.col(name).forward_fill().over("run_id").fill_null(0.0) for name in axes
    )
    about = {row["run_id"]: row for row in runs.runs.iter_rows(named=True)}
    curves = {}
    for (run_id,), rows in wide.group_by(["run_id"], maintain_order=True):
        row = about[str(run_id)]
        evals = rows.filter(pl.any_horizontal(pl.col(dev).is_not_null())) if dev else rows.head(0)
        curves[row["run_id"]] = Curve(
            run_id=row["run_id"],
            seed=row["seed"],
            done=row["state"] == "done",
            costs={"step": _floats(evals["step"])}
            | {name: _floats(evals[name]) for name in axes if (rows[name].max() or 0.0) > 0.0},
            dev={name: _floats(evals[name]) for name in dev if rows[name].count()},
            test={name: float(rows[name].drop_nulls()[-1]) for name in test if rows[name].count()},
            perf=_perf(rows),
        )
    return curves


def _floats(column: pl.Series) -> Array:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _perf(rows: pl.DataFrame) -> dict[str, float]:
    """Time and memory of one run."""
    perf: dict[str, float] = {}
    columns = set(rows.columns)
    if "perf/step_seconds" in columns:
        # The median over rows: the first rows of an attempt include warming up.
        perf["step_seconds"] = rows["perf/step_seconds"].median()
    if {"perf/step_seconds", "perf/forward_seconds"} <= columns:
        both = rows.drop_nulls(["perf/step_seconds", "perf/forward_seconds"])
        perf["forward_share"] = (both["perf/forward_seconds"] / both["perf/step_seconds"]).median()
    for name, column in (("train_seconds", "train_seconds"), ("peak_bytes", "perf/peak_bytes")):
        if column in columns:
            perf[name] = rows[column].max()
    return {name: float(value) for name, value in perf.items() if value is not None}
