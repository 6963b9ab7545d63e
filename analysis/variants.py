"""Which runs are one method, and what it is called, from their configs alone.

Finished runs alone decide labels: a killed run may be missing from one of the two sources (wandb
holds its rows back in memory), and must not change what the others are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from analysis.runs import is_zero_shot

#: One run: a row of `Runs.runs` as a dict.
Row = dict[str, Any]
#: Parts of a config that can make another method; the others say where and how, not what.
_DECIDING = ("model", "task", "optimizer", "sparsity", "train")
#: Keys of those parts that do not. Paths are where files lay; what lay there is in no config.
_NEUTRAL = (
    "model.name", "model.path", "model.device", "model.device_map", "model.tuning.kind",
    "task.name", "task.path", "optimizer.name", "optimizer.lr", "sparsity.name",
    "sparsity.sparsity", "train.log_every", "train.checkpoint_minutes", "train.eval_batch_size",
)  # fmt: skip
#: What a run without training does not depend on, besides.
_NEUTRAL_ZERO_SHOT = ("train", "sparsity")
_PLACEMENT = "config.optimizer.placement"
#: Which weights train; part of a method's name.
_TUNING = "config.model.tuning.kind"


@dataclass
class Variant:
    """Runs of one setting but for seed and learning rate.

    Attributes:
        label: name of the method.
        done: finished runs.
        unfinished: runs that began and have no final row.
    """

    label: str
    done: list[Row] = field(default_factory=list)
    unfinished: list[Row] = field(default_factory=list)


def variants(rows: Sequence[Row]) -> list[Variant]:
    """Sort runs of one model and task into methods.

    The label is the optimizer with tuning mode and mask, and the keys in which finished runs of
    that name differ. An unfinished run joins the finished ones of its own setting; one that has
    none is a variant of its own, under a label with the keys in which any run of that name differs.

    Returns:
        Those with finished runs first; labels among them are distinct.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(_name(row), []).append(row)
    finished: dict[str, Variant] = {}
    lone: dict[str, Variant] = {}
    for name, members in by_name.items():
        keys = _differing([row for row in members if row["state"] == "done"])
        all_keys = _differing(members)
        for row in members:
            if row["state"] == "done":
                label = _label(name, row, keys)
                finished.setdefault(label, Variant(label)).done.append(row)
        for row in members:
            if row["state"] != "done":
                own = finished.get(_label(name, row, keys))
                if own is None or _differing([row, *own.done]):
                    label = _label(name, row, all_keys, absent=True)
                    own = lone.setdefault(label, Variant(label))
                own.unfinished.append(row)
    return [*finished.values(), *lone.values()]


def labels(rows: Sequence[Row]) -> dict[str, str]:
    """run_id to the name of its method, told apart from all others here, finished or not.

    For a view of runs that are still going on; tables use `variants`.
    """
    every = {key: None for row in rows for key in row}
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(_name(row), []).append(every | row)
    found = {}
    for name, members in by_name.items():
        keys = [k for k in _differing(members) if not _below(k[7:], ("model", "task"))]
        found |= {row["run_id"]: _label(name, row, keys, absent=True) for row in members}
    return found


def without_twins(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Leave out a run with placement `auto` where its seed and rate also ran with an explicit one.

    They are the same steps twice; counting both would make one seed look like two.

    Returns:
        (runs that count, runs left out).
    """
    explicit = {(row["seed"], row["lr"]) for row in rows if _placement(row) is not None}
    keep, twins = [], []
    for row in rows:
        auto = row.get(f"{_PLACEMENT}._target_") == "auto"
        (twins if auto and (row["seed"], row["lr"]) in explicit else keep).append(row)
    return keep, twins


def _name(row: Row) -> str:
    name, tuning = row["optimizer"], row.get(_TUNING)
    if tuning and tuning != "full":
        name += f" ({tuning})"
    if row["sparsity"] == "none" or is_zero_shot(row["optimizer"], row["optimizer_target"]):
        return name
    return f"{name} + {row['sparsity']} {row['sparsity_share']:g}"


def _label(name: str, row: Row, keys: Sequence[str], *, absent: bool = False) -> str:
    """The name and the row's value of each key; keys it lacks are told only with `absent`."""
    parts = [name]
    for key in keys:
        if row[key] in ("true", "false"):
            parts.append(("" if row[key] == "true" else "no ") + _short(key, keys))
        elif row[key]:
            parts.append(f"{_short(key, keys)} {_last_word(row[key], key)}")
        elif absent:
            parts.append(f"no {_short(key, keys)}")
    return ", ".join(parts)


def _differing(rows: Sequence[Row]) -> list[str]:
    """Config keys in which runs of one name differ and which make another method."""
    if not rows:
        return []
    zero_shot = is_zero_shot(rows[0]["optimizer"], rows[0]["optimizer_target"])
    neutral = _NEUTRAL + (_NEUTRAL_ZERO_SHOT if zero_shot else ())
    keys = [
        key
        for key in rows[0]
        if key.startswith("config.")
        and _below(key[7:], _DECIDING)
        and not _below(key[7:], neutral)
        and len({row[key] for row in rows}) > 1
    ]
    # `auto` stands for one of the explicit placements, and which one is in no log.
    if len({_placement(row) for row in rows} - {None}) > 1:
        return keys
    return [key for key in keys if not _below(key, (_PLACEMENT,))]


@lru_cache(maxsize=8192)  # the same few hundred keys for every run of thousands
def _below(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _placement(row: Row) -> tuple[tuple[str, str], ...] | None:
    """The placement a run was given explicitly, with its options."""
    if row.get(f"{_PLACEMENT}._target_") in (None, "auto"):
        return None
    return tuple((key, row[key]) for key in row if _below(key, (_PLACEMENT,)) and row[key])


def _last_word(value: str, key: str) -> str:
    return value.rpartition(".")[2] if key.endswith("_target_") else value


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a config key, or all of it when two keys end alike."""

    def last(name: str) -> str:
        return name.removesuffix("._target_").rpartition(".")[2]

    return last(key) if sum(last(key) == last(other) for other in keys) == 1 else key[7:]
