"""Rows from files or from the hub, splits, and the order in which batches come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from zolab.config import hub_data
from zolab.config import rows as rows_of
from zolab.config.contents import split_files
from zolab.config.rows import RowForm
from zolab.errors import UserError, first_line
from zolab.optim.keys import permutation

#: Batches whose examples are sorted by length together; small enough to keep batches mixed.
BUCKET_BATCHES = 4


@dataclass(frozen=True)
class Row:
    """What a task uses of one row of data, and where the row stands."""

    fields: dict[str, Any]
    place: str

    def fail(self, what: str) -> NoReturn:
        """Raise a UserError that names file and line."""
        raise UserError(f"{self.place}: {what}")


@dataclass(frozen=True)
class Sampling:
    """Which rows become train, dev and test.

    Attributes:
        sizes: rows wanted at most, by split.
        seed: key of every draw, whatever the run seed: runs of a grid share their data.
        k: rows of each label in train and again in dev; None: `sizes`.
    """

    sizes: dict[str, int]
    seed: int = 0
    k: int | None = None


class Table(Protocol):
    """Rows of one split, in the order in which they are stored."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> list[Row]:
        """Some rows; UserError names the place of one that the task cannot use."""

    def labels(self) -> list[Any]:
        """The label of every row."""


# --- files ---------------------------------------------------------------------------------------


class FileTable:
    """Rows of a data file, of each what the task uses of it.

    Kept as they are: Arrow would take less memory, and a second to import with what it brings.

    Args:
        path: file of rows.
        form: the columns used; others may hold anything.

    Raises:
        UserError: as FILE:LINE: what.
    """

    def __init__(self, path: Path, form: RowForm) -> None:
        self._path, self._label = path, form.label_column
        self._rows = [(number, form.used(row)) for number, row in rows_of.read(path, form)]

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Sequence[int]) -> list[Row]:
        chosen = [self._rows[index] for index in indices]
        return [Row(fields, f"{self._path}:{number}") for number, fields in chosen]

    def labels(self) -> list[Any]:
        return [fields[self._label] for _, fields in self._rows]


def read_folder(folder: Path, sampling: Sampling, form: RowForm) -> dict[str, list[Row]]:
    """Rows of train, dev and test, each cut to its size by a fixed key.

    Without a dev file the dev rows are cut from the training file, never overlapping.

    Args:
        folder: holds train and test files and perhaps one for dev, see `split_files`.
        sampling: how many rows, and which.
        form: what the task uses of a row.
    """
    files = {file.stem: file for file in split_files(folder)}
    for name in ("train", "test"):
        if name not in files:
            raise UserError(f"task.path = {str(folder)!r}: the folder has no {name}.jsonl")
    tables = {name: FileTable(file, form) for name, file in files.items()}
    train = tables["train"]
    if "dev" in tables or sampling.k is not None:
        return _draw(tables, sampling)
    if len(train) < 2:
        rows_of.refuse_lone_row(train.rows([0])[0].place)
    order = permutation(sampling.seed, 1, len(train)).tolist()
    num_dev = min(sampling.sizes["dev"], len(train) // 2)
    rest = sorted(order[num_dev:])
    chosen = _sample(len(rest), sampling.sizes["train"], 0, sampling.seed)
    return {
        "train": train.rows([rest[i] for i in chosen]),
        "dev": train.rows(sorted(order[:num_dev])),
        "test": _take(tables["test"], sampling, "test"),
    }


# --- the hub -------------------------------------------------------------------------------------


class HubTable:
    """A split of a hub data set; only the rows drawn are looked at.

    Args:
        table: a `datasets.Dataset`.
        name: what a message calls it.
        form: the columns used.
        unlabeled: label of rows that are left out.
    """

    def __init__(self, table: Any, name: str, form: RowForm, unlabeled: int | None) -> None:
        self._table, self._name, self._form = table, name, form
        for column in (form.label_column, *form.fields):
            if column is not None and column not in table.column_names:
                known = ", ".join(sorted(table.column_names))
                raise UserError(f"{name}: no field {column!r}; the data set has {known}")
        self._kept: list[int] | None = None
        if unlabeled is not None and form.label_column is not None:
            labels = enumerate(table[form.label_column])
            self._kept = [index for index, label in labels if label != unlabeled]
        if not len(self):
            raise UserError(f"{name}: no rows")

    def __len__(self) -> int:
        return len(self._table) if self._kept is None else len(self._kept)

    def rows(self, indices: Sequence[int]) -> list[Row]:
        places = indices if self._kept is None else [self._kept[i] for i in indices]
        out = []
        for place, fields in zip(places, self._table.select(places).to_list(), strict=True):
            fault = self._form.fault(fields)
            if fault:
                raise UserError(f"{self._name}, row {place}: {fault}")
            out.append(Row(self._form.used(fields), f"{self._name}, row {place}"))
        return out

    def labels(self) -> list[Any]:
        labels = list(self._table[self._form.label_column])
        return labels if self._kept is None else [labels[i] for i in self._kept]


def read_hub(hub: dict[str, Any], sampling: Sampling, form: RowForm) -> dict[str, list[Row]]:
    """Rows of train, dev and test of a hub data set, from the cache or through `datasets`.

    Train and dev are drawn together from the training split, dev being the last of those drawn;
    test is drawn from a split of its own (MeZO, arXiv 2305.17333, its published runs).

    Args:
        hub: checked `task.hub` section; its revision a commit, see `zolab.config.hub_data.pin`.
        sampling: how many rows, and which.
        form: what the task uses of a row.

    Raises:
        UserError: the data cannot be had, or have no such split or field.
    """
    splits = {"train": hub["train"], "dev": hub["dev"], "test": hub["test"]}
    tables = {
        name: HubTable(_load_split(hub, split), _called(hub, split), form, hub["unlabeled"])
        for name, split in splits.items()
        if split is not None
    }
    if "dev" in tables or sampling.k is not None:
        return _draw(tables, sampling)
    train, sizes = tables["train"], sampling.sizes
    order = permutation(sampling.seed, 200, len(train)).tolist()
    drawn = order[: sizes["train"] + sizes["dev"]]
    if len(drawn) <= sizes["dev"]:
        raise UserError(
            f"task.num_dev = {sizes['dev']}: {_called(hub, hub['train'])} has {len(train)} rows, "
            "so none would be left to train on"
        )
    return {
        "train": train.rows(sorted(drawn[: len(drawn) - sizes["dev"]])),
        "dev": train.rows(sorted(drawn[len(drawn) - sizes["dev"] :])),
        "test": _take(tables["test"], sampling, "test"),
    }


def _load_split(hub: dict[str, Any], split: str) -> Any:
    import datasets

    name, config, revision = hub["name"], hub["config"], hub["revision"]
    folder = hub_data.cached_tables(hub_data.cache_dir(), name, config, revision)
    files = _arrow_files(folder, split) if folder is not None else []
    if files:
        parts = [datasets.Dataset.from_file(str(file)) for file in files]
        return datasets.concatenate_datasets(parts)
    if folder is not None:
        known = ", ".join(sorted({_split_of(file) for file in folder.glob("*.arrow")}))
        raise UserError(f"task.hub: {name} has no split {split!r}; the cache has {known or 'none'}")
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # `datasets` raises whatever its transport and parsers do
        fetch = hub_data.fetch_command(name, config, revision)
        raise UserError(
            f"task.hub.name = {name!r}: {first_line(error)}; fetch it where there is a network "
            f"with `{fetch}`, or give a folder in task.path"
        ) from error


def _arrow_files(folder: Path, split: str) -> list[Path]:
    return sorted(file for file in folder.glob("*.arrow") if _split_of(file) == split)


def _split_of(file: Path) -> str:
    """`glue-train.arrow` and `glue-train-00000-of-00002.arrow` hold the split train."""
    parts = file.stem.split("-")
    return parts[-4] if len(parts) > 4 and parts[-2] == "of" else parts[-1]


def _called(hub: dict[str, Any], split: str) -> str:
    return " ".join(filter(None, (hub["name"], hub["config"], split)))


# --- draws ---------------------------------------------------------------------------------------


def _draw(tables: dict[str, Table], sampling: Sampling) -> dict[str, list[Row]]:
    """Each split from its own table; with `k`, dev perhaps from the table of train."""
    if sampling.k is None:
        return {name: _take(tables[name], sampling, name) for name in ("train", "dev", "test")}
    k, train = sampling.k, tables["train"]
    if "dev" in tables:
        chosen, dev = _of_each_label(train, k, 1, sampling), tables["dev"]
        chosen_dev = _of_each_label(dev, k, 1, sampling)
    else:
        both, dev = _of_each_label(train, k, 2, sampling), train
        chosen, chosen_dev = [part[:k] for part in both], [part[k:] for part in both]
    return {
        "train": train.rows(sorted(chain.from_iterable(chosen))),
        "dev": dev.rows(sorted(chain.from_iterable(chosen_dev))),
        "test": _take(tables["test"], sampling, "test"),
    }


def _of_each_label(table: Table, k: int, times: int, sampling: Sampling) -> list[list[int]]:
    """`times` x `k` row numbers for each label, drawn by the seed."""
    labels = table.labels()
    found: dict[Any, list[int]] = {label: [] for label in sorted(set(labels), key=str)}
    for index in permutation(sampling.seed, 300, len(labels)).tolist():
        if len(found[labels[index]]) < times * k:
            found[labels[index]].append(index)
    for label, indices in found.items():
        if len(indices) < times * k:
            place = table.rows(indices[:1])[0].place.rpartition(":")[0] or "the data"
            halves = " for train and dev each" if times > 1 else ""
            raise UserError(
                f"task.k = {k}: {place} has {len(indices)} rows of label {label}; "
                f"expected {k}{halves}"
            )
    return list(found.values())


def _take(table: Table, sampling: Sampling, split: str) -> list[Row]:
    key = ("train", "dev", "test").index(split)
    return table.rows(_sample(len(table), sampling.sizes[split], key, sampling.seed))


def _sample(count: int, size: int, key: int, seed: int) -> list[int]:
    """`size` of `count` rows in their order, chosen by a fixed key; all of them if fewer."""
    if count <= size:
        return list(range(count))
    return sorted(permutation(seed, 100 + key, count)[:size].tolist())


class BatchOrder:
    """Which examples make up step t: a function of (seed, t), so a resume needs no state.

    Each epoch is a fresh permutation; within windows of a few batches, examples are sorted by
    length, so that a batch wastes little on padding. The last, smaller batch is kept.

    Args:
        lengths: tokens of each example, padding unit included.
        batch_size: examples per batch.
        seed: run seed.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.per_epoch = -(-len(lengths) // batch_size)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of a step, counted from 1."""
        epoch, place = divmod(step - 1, self.per_epoch)
        if epoch != self._epoch:
            self._batches = self._arrange(epoch)
            self._epoch = epoch
        return self._batches[place]

    def _arrange(self, epoch: int) -> list[list[int]]:
        order = permutation(self.seed, 2 * epoch, len(self.lengths))
        window = BUCKET_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[torch.argsort(self.lengths[part], stable=True)]
            batches += [b.tolist() for b in part.split(self.batch_size)]
        shuffled = permutation(self.seed, 2 * epoch + 1, len(batches)).tolist()
        return [batches[i] for i in shuffled]
