"""Rows from JSON lines, splits, token rows, and the order in which batches come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from zolab.config import rows as rows_of
from zolab.config.rows import RowForm
from zolab.errors import UserError, first_line
from zolab.optim.keys import permutation

#: Splits are sampled with this key, whatever the run seed: runs of a grid share their data.
SPLIT_SEED = 0
#: Batches whose examples are sorted by length together; small enough to keep batches mixed.
BUCKET_BATCHES = 4
#: Column of a table that no task uses: where a row stands.
_PLACE = "FILE:LINE"


@dataclass(frozen=True)
class Row:
    """One JSON object of a data file and where it stands."""

    fields: dict[str, Any]
    place: str

    def fail(self, what: str) -> NoReturn:
        """Raise a UserError that names file and line."""
        raise UserError(f"{self.place}: {what}")


def read_table(path: Path, form: RowForm) -> Any:
    """What a task uses of a JSON-lines file, as a `datasets.Dataset`.

    Args:
        path: file of rows.
        form: the columns used; others may hold anything.

    Returns:
        One text column per field, the labels, and a column `FILE:LINE`.

    Raises:
        UserError: as FILE:LINE: what. Rows are looked at before Arrow sees them, since it names
            neither file nor line.
    """
    import datasets
    from pyarrow import ArrowException

    rows = [
        {**form.used(row), _PLACE: f"{path}:{number}"} for number, row in rows_of.read(path, form)
    ]
    try:
        return datasets.Dataset.from_list(rows)
    except (ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be made a table: {first_line(error)}") from error


def read_splits(folder: Path, sizes: dict[str, int], form: RowForm) -> dict[str, list[Row]]:
    """Rows of train, dev and test, each cut to its size by a fixed key.

    Without dev.jsonl the dev rows are cut from the training file, never overlapping.

    Args:
        folder: holds train.jsonl, test.jsonl and perhaps dev.jsonl.
        sizes: rows wanted at most, by split.
        form: what the task uses of a row.
    """
    for name in ("train", "test"):
        if not (folder / f"{name}.jsonl").is_file():
            raise UserError(f"task.path = {str(folder)!r}: the folder has no {name}.jsonl")
    train = read_table(folder / "train.jsonl", form)
    if (folder / "dev.jsonl").is_file():
        dev = _sample(read_table(folder / "dev.jsonl", form), sizes["dev"], 1)
    else:
        if len(train) < 2:
            rows_of.refuse_lone_row(train[0][_PLACE])
        order = permutation(SPLIT_SEED, 1, len(train)).tolist()
        num_dev = min(sizes["dev"], len(train) // 2)
        dev = train.select(sorted(order[:num_dev]))
        train = train.select(sorted(order[num_dev:]))
    chosen = {
        "train": _sample(train, sizes["train"], 0),
        "dev": dev,
        "test": _sample(read_table(folder / "test.jsonl", form), sizes["test"], 2),
    }
    return {name: _rows(table) for name, table in chosen.items()}


def _rows(table: Any) -> list[Row]:
    return [
        Row({k: v for k, v in fields.items() if k != _PLACE}, fields[_PLACE])
        for fields in table.to_list()
    ]


def _sample(table: Any, size: int, key: int) -> Any:
    """`size` rows in their order in the file, chosen by a fixed key; all of them if fewer."""
    if len(table) <= size:
        return table
    chosen = permutation(SPLIT_SEED, 100 + key, len(table))[:size]
    return table.select(sorted(chosen.tolist()))


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
