"""Rows from JSON lines, splits, token rows, and the order in which batches come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from zolab.errors import UserError
from zolab.optim.keys import permutation

#: Splits are sampled with this key, whatever the run seed: runs of a grid share their data.
SPLIT_SEED = 0
#: Batches whose examples are sorted by length together; small enough to keep batches mixed.
BUCKET_BATCHES = 4


@dataclass(frozen=True)
class Row:
    """One JSON object of a data file and where it stands."""

    fields: dict[str, Any]
    place: str

    def fail(self, what: str) -> NoReturn:
        """Raise a UserError that names file and line."""
        raise UserError(f"{self.place}: {what}")


def read_rows(path: Path) -> list[Row]:
    """All rows of a JSON-lines file; UserError as FILE:LINE: what."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: expected a JSON object, got {type(fields).__name__}")
        rows.append(Row(fields, place))
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def read_table(path: Path) -> Any:
    """A JSON-lines file as a `datasets.Dataset`, with a column `_place` that tells FILE:LINE.

    Lines are looked at one by one first, because Arrow names neither file nor line.
    """
    import datasets
    from pyarrow import ArrowException

    rows = read_rows(path)
    try:
        return datasets.Dataset.from_list([{**r.fields, "_place": r.place} for r in rows])
    except (ArrowException, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: a column holds values of different types ({reason})") from error


def read_splits(folder: Path, sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Rows of train, dev and test, each cut to its size by a fixed key.

    Without dev.jsonl the dev rows are cut from the training file, never overlapping.

    Args:
        folder: holds train.jsonl, test.jsonl and perhaps dev.jsonl.
        sizes: rows wanted at most, by split.
    """
    for name in ("train", "test"):
        if not (folder / f"{name}.jsonl").is_file():
            raise UserError(f"task.path = {str(folder)!r}: the folder has no {name}.jsonl")
    train = read_table(folder / "train.jsonl")
    if (folder / "dev.jsonl").is_file():
        dev = _sample(read_table(folder / "dev.jsonl"), sizes["dev"], 1)
    else:
        order = permutation(SPLIT_SEED, 1, len(train)).tolist()
        num_dev = min(sizes["dev"], len(train) // 2)
        if not num_dev:
            raise UserError(f"{folder / 'train.jsonl'}: too few rows to cut a dev split from")
        dev = train.select(sorted(order[:num_dev]))
        train = train.select(sorted(order[num_dev:]))
    chosen = {
        "train": _sample(train, sizes["train"], 0),
        "dev": dev,
        "test": _sample(read_table(folder / "test.jsonl"), sizes["test"], 2),
    }
    return {name: _rows(table) for name, table in chosen.items()}


def _rows(table: Any) -> list[Row]:
    """Rows again; a field that a line did not have is left out, not None."""
    return [
        Row({k: v for k, v in fields.items() if k != "_place" and v is not None}, fields["_place"])
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
