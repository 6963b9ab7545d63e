"""History records as columns: the fast way against protobuf, record by record."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from wandb.proto import wandb_internal_pb2 as wandb_pb

from zolab.tracking.wandb_rows import History

_Row = tuple[int, list[tuple[str, Any]]]


def _record(number: int, row: _Row, *, nested: bool) -> bytes:
    """One record as wandb writes it; keys as one word or as their parts."""
    record = wandb_pb.Record(num=number)
    step, items = row
    for key, value in items:
        item = record.history.item.add(value_json=json.dumps(value))
        if nested:
            item.nested_key.extend(key.split("|"))
        else:
            item.key = key
    record.history.step.num = step
    return record.SerializeToString()


def _rows(rng: random.Random, num_rows: int) -> list[_Row]:
    """Steps and lengths around every change of a varint, with the bytes 82 01 among them."""
    steps = [0, 1, 127, 128, 130, 255, 256, 258, 16383, 16384, 16386, 33026, 2**31, 2**40]
    rows: list[_Row] = []
    for _ in range(num_rows):
        items: list[tuple[str, Any]] = []
        for name in rng.sample(["a", "train/loss", "k" * 120, "k" * 130, "ü", "\u0082", "_step",
                                "x|y", "n"], rng.randint(0, 7)):  # fmt: skip
            value = rng.choice([rng.gauss(0, 1), 10.0 ** rng.randint(-300, 300), rng.randrange(300),
                                float("nan"), float("-inf"), True, "text", None, 2**60 + 1,
                                {"max": 1.0}, "v" * rng.randint(100, 140)])  # fmt: skip
            items.append((name, value))
        rows.append((rng.choice(steps), items))
    return rows


def _expected(rows: list[_Row]) -> list[tuple[int, dict[str, float]]]:
    return [
        (
            step,
            {
                key: float(value)
                for key, value in items
                if isinstance(value, (int, float)) and not key.startswith("_")
            },
        )
        for step, items in rows
    ]


@pytest.mark.parametrize("seed", range(8))
def test_every_record_is_as_protobuf_reads_it(seed: int) -> None:
    rng = random.Random(seed)
    rows = _rows(rng, 400)
    if seed % 2:  # plain ones only, so that whole lots go the fast way
        rows = [
            (step, [(k, v) for k, v in items if isinstance(v, float) and len(k) < 120])
            for step, items in rows
        ]
    numbers = [rng.choice([1, 127, 130, 300, 70_000]) for _ in rows]
    payloads = [_record(n, row, nested=seed % 3 == 0) for n, row in zip(numbers, rows, strict=True)]
    history = History(payloads)
    for number in history.odd:
        record = wandb_pb.Record.FromString(payloads[number])
        items = {i.key or "|".join(i.nested_key): json.loads(i.value_json)
                 for i in record.history.item}  # fmt: skip
        history.put(number, record.history.step.num, items)
    steps, values, logged = history.columns()
    found = [
        (int(step), {key: float(values[key][i]) for key in values if logged[key][i]})
        for i, step in enumerate(steps)
    ]
    np.testing.assert_equal(found, _expected(rows))
    if seed % 2 and seed % 3:
        usual = {i for i, (step, items) in enumerate(rows) if items and step < 2**35}
        assert usual.isdisjoint(history.odd)


def test_bytes_of_any_kind_raise_nothing() -> None:
    rng = random.Random(3)
    good = [_record(n, row, nested=False) for n, row in enumerate(_rows(rng, 50))]
    for _ in range(300):
        lot = [bytearray(payload) for payload in good]
        for payload in lot:
            for _ in range(rng.randint(0, 3)):
                payload[rng.randrange(len(payload))] = rng.randrange(256)
        history = History([bytes(payload) for payload in lot])
        assert history.columns()[0].size == len(lot) - len(history.odd)


def test_no_records() -> None:
    steps, values, logged = History([]).columns()
    assert (steps.size, values, logged) == (0, {}, {})
