"""History records of a `.wandb` file as columns, thousands at a time.

A record as it nearly always is has keys and values of fewer than 128 bytes, so every length is one
byte, and its items can be found in all records at once by the two bytes that begin a value
(field 16 of an item). Every length that leads there is checked; a record in which one does not
fit is left to protobuf, so that a wrong guess costs time and nothing else. Python objects are made
for keys only: the numbers go from text to columns inside Arrow.

wandb writes the items of each record in another order, so nothing can be learned from the one
before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zolab.tracking.wandb_blocks import Bytes, Ints, Records, varint
from zolab.tracking.wandb_native import ASK, NOT_THERE, Decoder, Floats

Bools = NDArray[np.bool_]
#: Key to its numbers and whether a row has it.
_Columns = dict[str, tuple[Floats, Bools]]
#: Steps, which rows have the usual shape, and the columns.
_Decoded = tuple[Ints, Bools, _Columns]

_DIGIT = np.zeros(256, np.bool_)
_DIGIT[list(b"0123456789")] = True
_NAN = int.from_bytes(b"NaN", "little")
_NUMBER, _OTHER_JSON, _NO_JSON = range(3)


@dataclass
class _Lot:
    """Rows that were decoded together.

    Attributes:
        numbers: shape (n,): places of their records in the file.
        steps: shape (n,).
        columns: key to (numbers, whether a row has it), both of shape (n,).
    """

    numbers: Ints
    steps: Ints
    columns: _Columns


class History:
    """Rows of one file.

    Args:
        native: decodes usual records in C.

    Attributes:
        odd: (number, bytes) of the records so far that have another shape than the usual; `put`
            adds them, and those that are never added are left out.
    """

    def __init__(self, native: Decoder | None = None) -> None:
        self._native = native
        self.odd: list[tuple[int, bytes]] = []
        self._lots: list[_Lot] = []
        self._single: list[tuple[int, int, dict[str, float]]] = []

    def add(self, records: Records) -> None:
        """Add records that each should hold a history row; those that are not usual become odd."""
        if not records.numbers.size:
            return
        found = None if self._native is None else _decode_native(self._native, records)
        steps, fits, columns = found or _decode(records)
        if not fits.all():
            self.odd.extend(records.where(~fits).payloads())
            columns = {key: (numbers[fits], there[fits])
                       for key, (numbers, there) in columns.items()}  # fmt: skip
        self._lots.append(_Lot(records.numbers[fits], steps[fits], columns))

    def put(self, number: int, step: int, values: Mapping[str, Any]) -> None:
        """Add the row of an odd record.

        Args:
            number: its place in the file.
            step: its step.
            values: decoded JSON; what is no number is left out.
        """
        known = {key: _float(value) for key, value in values.items()
                 if isinstance(value, (int, float))}  # fmt: skip
        self._single.append((number, step, known))

    def columns(self) -> tuple[Ints, dict[str, Floats], dict[str, Bools]]:
        """(steps, key to numbers, key to whether a row has it) in the order of the file.

        wandb's own keys, which begin with an underscore, are left out.
        """
        single = np.array([number for number, _, _ in self._single], np.int64)
        order = np.sort(np.concatenate([single, *(lot.numbers for lot in self._lots)]))
        steps = np.zeros(order.size, np.int64)
        values: dict[str, Floats] = {}
        logged: dict[str, Bools] = {}

        def column(key: str) -> tuple[Floats, Bools]:
            if key not in values:
                values[key] = np.zeros(order.size)
                logged[key] = np.zeros(order.size, np.bool_)
            return values[key], logged[key]

        for lot in self._lots:
            rows = np.searchsorted(order, lot.numbers)
            steps[rows] = lot.steps
            for key, (numbers, there) in lot.columns.items():
                if not key.startswith("_") and there.any():
                    into, known = column(key)
                    into[rows], known[rows] = numbers, there
        for row, (_, step, known) in zip(
            np.searchsorted(order, single).tolist(), self._single, strict=True
        ):
            steps[row] = step
            for key, number in known.items():
                if not key.startswith("_"):
                    column(key)[0][row], column(key)[1][row] = number, True
        return steps, values, logged


def _decode_native(native: Decoder, records: Records) -> _Decoded | None:
    """`_decode` in C; None if there are too many keys for that."""
    found = native.rows(records.view, records.starts, records.ends)
    if found is None:
        return None
    steps, fits, names, numbers, held = found
    there = held != NOT_THERE
    columns = _named(names, numbers, there, fits)
    for cell in zip(*np.nonzero(held == ASK), strict=True):
        start = int(numbers[cell])
        end = start + int(records.view[start - 1])
        numbers[cell], kind = _value(records.view[start:end].tobytes())
        there[cell] = kind == _NUMBER
        fits[cell[1]] &= kind != _NO_JSON
    return steps, fits, columns


def _named(names: list[bytes], numbers: Floats, there: Bools, fits: Bools) -> _Columns:
    """Columns by key; rows with a key that is no text do not fit."""
    columns = {}
    for name, values, known in zip(names, numbers, there, strict=True):
        try:
            columns[name.decode()] = values, known
        except UnicodeDecodeError:
            fits[known] = False
    return columns


def _decode(records: Records) -> _Decoded:
    """Steps of records, which of them have the usual shape, and the columns of those."""
    view, starts, ends = records.view, records.starts, records.ends
    num_rows = starts.size
    # Head: an optional running number (field 1), then the history record (field 2) to the end.
    numbered = view[starts] == 0x08
    at = np.where(numbered, varint(view, starts + 1)[1], starts)
    length, begins = varint(view, at + 1)
    fits = (view[at] == 0x12) & (begins + length == ends)
    begins = np.where(fits, begins, ends)

    # Items: 0a LENGTH, 0a|12 LENGTH KEY, 82 01 LENGTH VALUE; behind the last the step.
    marks = np.flatnonzero(view == 0x82)
    marks = marks[view[marks + 1] == 0x01]
    first = np.searchsorted(marks, begins)
    counts = np.maximum(np.searchsorted(marks, ends - 2) - first, 0)
    some = counts > 0
    fits &= some
    inside = np.zeros(marks.size + 1, np.int8)
    inside[first[some]] = 1
    inside[(first + counts)[some]] -= 1
    marks = marks[np.cumsum(inside[:-1], dtype=np.int8).view(np.bool_)]
    heads = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(num_rows), counts)
    value_starts = marks + 3
    value_ends = value_starts + view[marks + 2]
    item_starts = np.empty_like(marks)
    item_starts[1:] = value_ends[:-1]
    item_starts[heads[some]] = begins[some]
    item_starts = np.minimum(item_starts, marks)  # a wrong guess must not lead out of the data
    key_starts = item_starts + 4
    lengths = value_ends - item_starts - 2
    usual = 0x12000A + (lengths << 8) + ((marks - key_starts) << 24)
    words = _words(view)[item_starts]
    sound = words == usual
    if not sound.all():
        sound |= words == usual - 0x080000
    if lengths.max(initial=0) >= 0x80:
        sound &= lengths < 0x80
    fits[rows[~sound]] = False
    last = begins.copy()
    last[some] = value_ends[(heads + counts - 1)[some]]
    fits &= last <= ends
    last = np.minimum(last, ends)
    steps, step_ends = varint(view, last + 3)
    empty = view[last + 1] == 0  # a step of 0 is not written
    steps = np.where(empty, 0, steps)
    step_ends = np.where(empty, last + 2, step_ends)
    fits &= (view[last] == 0x12) & (step_ends == ends)
    fits &= empty | ((view[last + 1] == ends - last - 2) & (view[last + 2] == 0x08))

    items = [rows, key_starts, marks, value_starts, value_ends]
    if not fits.all():
        items = [column[fits[rows]] for column in items]
    rows, *cuts = items
    if not rows.size:
        return steps, fits, {}
    codes, names, numbers, kinds = _texts(view, *cuts)
    table, there = np.zeros((len(names), num_rows)), np.zeros((len(names), num_rows), np.bool_)
    places = codes * num_rows + rows
    table.ravel()[places] = numbers
    there.ravel()[places] = True
    if np.count_nonzero(there) != rows.size:  # the same key twice in a row
        fits &= there.sum(axis=0) == np.bincount(rows, minlength=num_rows)
    columns = _named(names, table, there, fits)
    if kinds is not None:
        there.ravel()[places[kinds != _NUMBER]] = False
        fits[rows[kinds == _NO_JSON]] = False
    return steps, fits, columns


def _words(view: Bytes) -> NDArray[np.uint32]:
    """The four bytes at each place, least first."""
    return np.ndarray(view.size - 3, "<u4", view.data, strides=(1,))


def _texts(
    view: Bytes, key_starts: Ints, key_ends: Ints, value_starts: Ints, value_ends: Ints
) -> tuple[Ints, list[bytes], Floats, NDArray[np.uint8] | None]:
    """Number of each key, the keys, the numbers (0 for what is none), and kinds of the values.

    Args:
        view: the bytes.
        key_starts, key_ends, value_starts, value_ends: shape (n,), where they lie, in order.

    Returns:
        The kinds are `_NUMBER`, `_OTHER_JSON` or `_NO_JSON`; None when all are numbers.
    """
    num_items = key_starts.size
    offsets = np.empty(4 * num_items + 1, np.int32)
    offsets[:-1:4], offsets[1::4] = key_starts, key_ends
    offsets[2::4], offsets[3::4] = value_starts, value_ends
    offsets[-1] = value_ends[-1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(view)]
    every = np.arange(num_items, dtype=np.int32) * 4
    pieces = pa.Array.from_buffers(pa.binary(), offsets.size - 1, buffers)
    keys = pieces.take(pa.array(every)).dictionary_encode()
    codes, names = keys.indices.to_numpy().astype(np.int64), keys.dictionary.to_pylist()
    # Said to be text and never asked whether it is: what is no number fails as one.
    texts = pa.Array.from_buffers(pa.string(), offsets.size - 1, buffers)
    plain = _plain(view, value_starts, value_ends)
    try:
        if plain.all():
            return codes, names, _floats(texts.take(pa.array(every + 2))), None
        numbers, kinds = np.zeros(num_items), np.zeros(num_items, np.uint8)
        numbers[plain] = _floats(texts.take(pa.array(every[plain] + 2)))
    except pa.ArrowInvalid:
        numbers, kinds = np.zeros(num_items), np.zeros(num_items, np.uint8)
        plain[:] = False
    for item in np.flatnonzero(~plain).tolist():
        text = view[value_starts[item] : value_ends[item]].tobytes()
        numbers[item], kinds[item] = _value(text)
    return codes, names, numbers, kinds


def _plain(view: Bytes, starts: Ints, ends: Ints) -> Bools:
    """Which texts may go through Arrow, which also takes 01, 1. and inf and gives -0 a sign."""
    minus = view[starts] == ord("-")
    at = starts + minus
    begins, behind = view[at], np.where(at + 1 < ends, view[at + 1], 0)
    plain = _DIGIT[begins] & ~((begins == ord("0")) & _DIGIT[behind])
    plain &= ~(minus & (begins == ord("0")) & (ends - at == 1))
    plain |= (_words(view)[starts] & 0xFFFFFF == _NAN) & (ends - starts == 3)
    dots = np.flatnonzero(view == ord("."))
    dots = dots[dots < view.size - 1]
    dots = dots[~_DIGIT[view[dots + 1]]]
    plain[np.searchsorted(dots, starts) < np.searchsorted(dots, ends)] = False
    return plain


def _floats(texts: pa.StringArray) -> Floats:
    return pc.cast(texts, pa.float64()).to_numpy()


def _value(text: bytes) -> tuple[float, int]:
    """The number in a text, 0 if there is none, and which kind of text it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return 0.0, _NO_JSON
    if isinstance(value, (int, float)):
        return _float(value), _NUMBER
    return 0.0, _OTHER_JSON


def _float(value: float) -> float:
    """The nearest float; integers beyond all floats become infinite, as their text would."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
