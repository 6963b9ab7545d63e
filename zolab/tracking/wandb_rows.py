"""History records of a `.wandb` file as columns, thousands at a time.

A record as it nearly always is has keys and values of fewer than 128 bytes, so every length is one
byte, and its items can be found in all records at once by the two bytes that begin a value
(field 16 of an item). Every length that leads there is checked; a record in which one does not
fit is left to protobuf, so that a wrong guess costs time and nothing else. Python objects are made
for keys only: the numbers go from text to columns inside Arrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_LONGEST_VARINT = 5  # bytes; steps and lengths beyond that are left to protobuf
# Records per lot: index arrays of a lot stay in the processor's cache.
_LOT = 4096


@dataclass
class Items:
    """Items of some rows, in no particular order.

    Attributes:
        rows: shape (n,): number of the row of each item.
        keys: shape (n,): number of its key in `names`.
        names: keys, UTF-8.
        values: shape (n,): its number; 0 where it is none.
        numeric: shape (n,), bool: whether it is a number.
    """

    rows: NDArray[np.int64]
    keys: NDArray[np.int64]
    names: Sequence[bytes]
    values: NDArray[np.float64]
    numeric: NDArray[np.bool_]


class History:
    """Rows of one file, in the order of its records.

    Args:
        payloads: whole `Record` messages that hold a history row.

    Attributes:
        odd: numbers of the records that have another shape than the usual; `put` adds them, and
            those that are never added are left out.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._steps = np.zeros(len(payloads), np.int64)
        self._there = np.zeros(len(payloads), np.bool_)
        self._items: list[Items] = []
        for start in range(0, len(payloads), _LOT):
            lot = slice(start, start + _LOT)
            self._steps[lot], self._there[lot], items = _decode(payloads[lot], start)
            self._items.append(items)
        self.odd: list[int] = np.flatnonzero(~self._there).tolist()

    def put(self, row: int, step: int, values: Mapping[str, Any]) -> None:
        """Add the row of an odd record.

        Args:
            row: its number.
            step: its step.
            values: decoded JSON; what is no number is left out.
        """
        known = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
        self._steps[row], self._there[row] = step, True
        where, numbers = np.full(len(known), row), np.array(list(known.values()), np.float64)
        names = [key.encode() for key in known]
        numeric = np.ones(len(known), np.bool_)
        self._items.append(Items(where, np.arange(len(known)), names, numbers, numeric))

    def columns(
        self,
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]]]:
        """(steps, key to numbers, key to whether a row has it); wandb's own keys are left out."""
        num_rows = self._steps.size
        values: dict[str, NDArray[np.float64]] = {}
        logged: dict[str, NDArray[np.bool_]] = {}
        for lot in self._items:
            order = np.argsort(lot.keys, kind="stable")
            ends = np.cumsum(np.bincount(lot.keys, minlength=len(lot.names)))
            for number, name in enumerate(lot.names):
                mine = order[ends[number - 1] if number else 0 : ends[number]]
                mine = mine[lot.numeric[mine]]
                if name.startswith(b"_") or not mine.size:
                    continue
                key = name.decode(errors="replace")
                if key not in values:
                    values[key] = np.zeros(num_rows)
                    logged[key] = np.zeros(num_rows, dtype=bool)
                values[key][lot.rows[mine]] = lot.values[mine]
                logged[key][lot.rows[mine]] = True
        if self._there.all():
            return self._steps, values, logged
        kept = self._there
        return (
            self._steps[kept],
            {key: column[kept] for key, column in values.items()},
            {key: column[kept] for key, column in logged.items()},
        )


def _decode(
    payloads: Sequence[bytes], first_row: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Items]:
    """Steps of payloads, which of them have the usual shape, and the items of those."""
    data = np.frombuffer(b"".join(payloads) + bytes(2 * _LONGEST_VARINT), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, payloads), np.int64, len(payloads)))
    starts = np.concatenate([[0], ends[:-1]])

    # Head: an optional running number (field 1), then the history record (field 2) to the end.
    at = starts + (data[starts] == 0x08)
    at = np.where(at > starts, _varint(data, at)[1], at)
    fits = data[at] == 0x12
    length, begins = _varint(data, at + 1)
    fits &= begins + length == ends

    # Items: 0a LENGTH, 0a|12 LENGTH KEY, 82 01 LENGTH VALUE; behind the last the step.
    marks = np.flatnonzero((data[:-1] == 0x82) & (data[1:] == 0x01))
    rows = np.searchsorted(ends, marks, side="right")
    inside = rows < len(payloads)
    marks, rows = marks[inside], rows[inside]
    # The same two bytes may be a length in the head, or the end of the step.
    real = (marks >= begins[rows]) & (marks + 2 < ends[rows])
    marks, rows = marks[real], rows[real]
    value_starts = marks + 3
    value_ends = value_starts + data[marks + 2]
    if not marks.size:
        return np.zeros(len(payloads), np.int64), np.zeros(len(payloads), np.bool_), _nothing()
    is_first = np.concatenate([[True], rows[1:] != rows[:-1]])
    item_starts = np.where(is_first, begins[rows], np.concatenate([[0], value_ends[:-1]]))
    item_starts = np.minimum(item_starts, marks)  # a wrong guess must not lead out of the data
    key_starts = np.minimum(item_starts + 4, marks)
    sound = (data[item_starts] == 0x0A) & (data[item_starts + 1] == value_ends - item_starts - 2)
    sound &= (data[item_starts + 2] == 0x0A) | (data[item_starts + 2] == 0x12)
    sound &= (data[item_starts + 3] == marks - key_starts) & (marks > key_starts)
    sound &= (data[marks + 2] < 0x80) & (value_ends <= ends[rows])
    fits[rows[~sound]] = False
    counts = np.bincount(rows, minlength=len(payloads))
    fits &= counts > 0
    last = np.minimum(value_ends[np.maximum(np.cumsum(counts) - 1, 0)], data.size - 8)
    steps, step_ends = _varint(data, last + 3)
    empty = data[last + 1] == 0  # a step of 0 is not written
    steps = np.where(empty, 0, steps)
    step_ends = np.where(empty, last + 2, step_ends)
    fits &= (data[last] == 0x12) & (step_ends == ends)
    fits &= empty | ((data[last + 1] == ends - last - 2) & (data[last + 2] == 0x08))

    mine = fits[rows]
    if not mine.any():
        return steps, fits, _nothing()
    cuts = np.stack([key_starts, marks, value_starts, value_ends], axis=1)[mine]
    keys, values, numeric = _texts(data, cuts)
    codes = keys.indices.to_numpy().astype(np.int64)
    names = keys.dictionary.to_pylist()
    return steps, fits, Items(rows[mine] + first_row, codes, names, values, numeric)


def _nothing() -> Items:
    none = np.empty(0, np.int64)
    return Items(none, none, [], np.empty(0), np.empty(0, np.bool_))


def _varint(
    data: NDArray[np.uint8], at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Protobuf variable-length integers at `at`, and the positions after them.

    One that is longer than `_LONGEST_VARINT` gives a position that fits nothing.
    """
    value = np.zeros(at.shape, np.int64)
    going = np.ones(at.shape, np.bool_)
    for number in range(_LONGEST_VARINT):
        byte = data[np.minimum(at, data.size - 1)].astype(np.int64)
        value += np.where(going, (byte & 0x7F) << (7 * number), 0)
        at = at + going
        going &= byte >= 0x80
        if not going.any():
            break
    return value, np.where(going, -1, at)


def _texts(
    data: NDArray[np.uint8], cuts: NDArray[np.int64]
) -> tuple[pa.DictionaryArray, NDArray[np.float64], NDArray[np.bool_]]:
    """Keys, numbers and which of the values are numbers, from where they begin and end.

    Args:
        data: the bytes.
        cuts: shape (n, 4), increasing: begin and end of the key, begin and end of the value.
    """
    offsets = np.concatenate([cuts.ravel(), cuts[-1:, 3]]).astype(np.int32)
    pieces = pa.Array.from_buffers(
        pa.binary(), offsets.size - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    every = np.arange(len(cuts)) * 4
    keys = pieces.take(pa.array(every)).dictionary_encode()
    texts = pieces.take(pa.array(every + 2))
    try:
        numbers = pc.cast(pc.cast(texts, pa.string()), pa.float64()).to_numpy()
        return keys, numbers, np.ones(len(cuts), np.bool_)
    except pa.ArrowInvalid:  # some value is no number: told apart one by one
        found = [_number(text) for text in texts.to_pylist()]
    numeric = np.array([number is not None for number in found], dtype=np.bool_)
    return keys, np.array([number or 0.0 for number in found]), numeric


def _number(text: bytes) -> float | None:
    """The number in a JSON text, None for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return float(value) if isinstance(value, (int, float)) else None
