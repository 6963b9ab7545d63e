"""The fast readers of `.wandb` files against the plainest one, on files of every kind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb_reference as plain
from wandb.proto import wandb_internal_pb2 as wandb_pb

from zolab.tracking import wandb_blocks

_KEYS = [
    "a",
    "train/loss",
    "k" * 90,
    "k" * 120,
    "k" * 130,
    "ü",
    "\u0082\u0001",
    "_step",
    "x|y",
    "n",
]
# Steps around every change of a varint, with the bytes 82 01 among them.
_STEPS = [0, 1, 127, 128, 130, 255, 256, 258, 16383, 16384, 16386, 33026, 2**31, 2**40]


def _value(rng: random.Random, *, usual: bool) -> Any:
    usual_ones = [
        rng.gauss(0, 1),
        rng.gauss(0, 1) * 10.0 ** rng.randint(-320, 300),
        rng.randrange(300),
        -0.0,
        float("nan"),
        float("-inf"),
        float("inf"),
        2**60 + 1,
    ]
    odd_ones = [
        True,
        "text",
        None,
        {"max": 1.0},
        [1],
        10**90,
        10**350,
        "v" * rng.randint(100, 140),
        "ü\x82",
    ]
    return rng.choice(usual_ones if usual or rng.random() < 0.8 else odd_ones)


def _payloads(rng: random.Random, num_rows: int, *, usual: bool) -> list[bytes]:
    """History rows whose keys change in number and order, and other records between them."""
    made = []
    keys = _KEYS[:3]
    for number in range(num_rows):
        if rng.random() < 0.02:  # a new key in mid-file, or one that stops
            keys = rng.sample(_KEYS[:3] if usual else _KEYS, rng.randint(1, 3 if usual else 7))
        chosen = rng.sample(keys, len(keys)) if usual else rng.sample(_KEYS, rng.randint(0, 7))
        if not usual and chosen and rng.random() < 0.05:
            chosen.append(chosen[0])  # the same key twice
        row = rng.choice(_STEPS), [(key, _value(rng, usual=usual)) for key in chosen]
        place = rng.choice([0, 1, 127, 130, 300, 70_000, number])
        made.append(plain.history_record(place, row, nested=rng.random() < 0.5))
        if rng.random() < 0.5:
            record = wandb_pb.Record(num=number)
            record.summary.update.add(key="a", value_json="x" * rng.choice([1, 50, 3000, 70_000]))
            made.append(record.SerializeToString())
        if rng.random() < 0.02:
            made.append(rng.choice([b"", b"\x12", b"\x08\x01\x12\x05\x0a", rng.randbytes(40)]))
    return made


def _assert_same(path: Path, data: bytes) -> tuple[int, list[str]]:
    path.write_bytes(data)
    log = plain.read_both_ways(path)
    rows, notes = plain.read(data)
    assert log.notes == notes
    np.testing.assert_equal(log.rows, rows)
    signs = [np.signbit(list(row.values())).tolist() for _, row in log.rows]
    assert signs == [np.signbit([row[k] for k in found]).tolist()
                     for (_, row), (_, found) in zip(rows, log.rows, strict=True)]  # fmt: skip
    return len(rows), notes


@pytest.mark.parametrize("lot", [1, 3, 192])
@pytest.mark.parametrize("usual", [True, False])
def test_every_file_is_as_the_plain_reader_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: bool, lot: int
) -> None:
    monkeypatch.setattr(wandb_blocks, "_LOT_BLOCKS", lot)
    rng = random.Random(10 * lot + usual)
    for _ in range(4):
        data = plain.framed(_payloads(rng, 400, usual=usual))
        assert len(data) > 3 * plain.BLOCK
        num_rows, _ = _assert_same(tmp_path / "run-x.wandb", data)
        assert num_rows >= 300


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_read_around_as_the_plain_reader_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(wandb_blocks, "_LOT_BLOCKS", 1 + seed)
    rng = random.Random(seed)
    good = plain.framed(_payloads(rng, 300, usual=bool(seed % 2)))
    told: set[str] = set()
    for _ in range(40):
        block_edge = plain.BLOCK * rng.randint(0, len(good) // plain.BLOCK)
        ends = [len(good), rng.randrange(len(good)), block_edge, block_edge + rng.randint(-9, 9)]
        data = bytearray(good[: max(0, rng.choice(ends))])
        for _ in range(rng.choice([0, 1, 1, 2, 6]) if data else 0):
            place = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[place : place + rng.randrange(5000)] = bytes(rng.randrange(3000))
            elif kind == 1:
                data[place - place % plain.BLOCK : place] = b""  # the start of a block is gone
            else:
                data[place] ^= 1 << rng.randrange(8)
        told.update(note.split(" ", 1)[-1][:12] for note in _assert_same(
            tmp_path / "run-x.wandb", bytes(data))[1])  # fmt: skip
    assert {"damaged bloc", "inside a rec"} <= told


def test_usual_rows_never_reach_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of reading hangs on it: rows of numbers are decoded as arrays."""
    rng = random.Random(0)
    steps = [step for step in _STEPS if step < 2**35]
    rows = [(rng.choice(steps), [(key, _value(rng, usual=True)) for key in _KEYS[:3]])
            for _ in range(500)]  # fmt: skip
    payloads = [plain.history_record(n, row, nested=True) for n, row in enumerate(rows)]
    path = tmp_path / "run-x.wandb"
    path.write_bytes(plain.framed(payloads))

    class Refuse:
        @staticmethod
        def FromString(payload: bytes) -> None:
            raise AssertionError(f"decoded by protobuf: {payload!r}")

    monkeypatch.setattr(wandb_pb, "Record", Refuse)
    assert len(plain.read_both_ways(path).rows) == 500


def _field(tag: int, content: bytes) -> bytes:
    head = bytes([tag]) if tag < 0x80 else bytes([tag & 0xFF, tag >> 8])
    return head + bytes([len(content)]) + content


def test_records_put_together_otherwise(tmp_path: Path) -> None:
    """Sound protobuf that wandb does not write today: other orders, fields besides, none at all."""
    key, value = _field(0x12, b"a"), _field(0x0182, b"0.25")
    item, other = _field(0x0A, key + value), _field(0x0A, _field(0x0A, b"b") + value)
    step, none, unknown = _field(0x12, b"\x08\x07"), _field(0x12, b""), b"\x78\x05"
    numbers = (b"1.0", b"NaN", b"0.", b"-0", b"01", b"1e5", b"true", b"1_0", b"inf", b"\xff", b"")
    histories = [
        item + other + step, step + item, item + step + other, other + none, none + item, step, b"",
        none, item, item + unknown + step, item + step + unknown, item + none + unknown,
        unknown + item + step, item + step + step, item + item + step, item + unknown,
        item + _field(0x12, b"\x08\x07" + unknown), item + _field(0x12, unknown + b"\x08\x07"),
        item + _field(0x12, b"\x08\x80\x00"), item + _field(0x12, b"\x08\xff\xff\xff\xff\xff\x01"),
        _field(0x0A, value + key) + step, _field(0x0A, key + key + value) + step,
        _field(0x0A, value) + step, _field(0x0A, key) + other + step, _field(0x0A, b"") + step,
        _field(0x0A, key + unknown + value) + step, _field(0x0A, key + value + unknown) + step,
        _field(0x0A, key + value + value) + step, item[:-1] + step, item[:5] + step,
        _field(0x0A, _field(0x12, b"\xff") + value) + step,
        *(_field(0x0A, key + _field(0x0182, text)) + step for text in numbers),
        _field(0x0A, _field(0x12, b"_step") + _field(0x0182, b"9")) + other,
    ]  # fmt: skip
    payloads = [_field(0x12, history) for history in histories]
    payloads += [payload + unknown for payload in payloads]  # behind the history
    payloads += [b"\x08\x81\x01" + payload for payload in payloads]
    rng = random.Random(5)
    usual = [plain.history_record(n, (n, [("a", n / 3)]), nested=True) for n in range(3)]
    num_rows, notes = _assert_same(tmp_path / "run-x.wandb", plain.framed(payloads + usual))
    assert len(payloads) / 2 < num_rows < len(payloads)
    assert "cannot be decoded" in notes[0]
    for payload in payloads:  # and each alone
        rest = rng.choice([usual, []])
        _assert_same(tmp_path / "run-x.wandb", plain.framed([payload, *rest]))


@pytest.mark.parametrize("room", range(9))
def test_blocks_with_no_room_for_another_header(tmp_path: Path, room: int) -> None:
    payload = plain.history_record(0, (5, [("a", 0.5)]), nested=True)
    first = bytes(plain.BLOCK - 7 - 2 * 7 - len(payload) - room)
    data = plain.framed([payload, b"\x7a" + first[1:]])
    padding = bytes(room if room < 7 else 0)
    assert (len(data) + len(padding)) % plain.BLOCK in (0, plain.BLOCK - room)
    for whole in (data, data + padding, data[:-1], data + padding[:-1]):
        assert _assert_same(tmp_path / "run-x.wandb", whole)[0] == 1


def test_bytes_of_any_kind_raise_nothing(tmp_path: Path) -> None:
    """Sound checksums around broken records."""
    rng = random.Random(3)
    good = _payloads(rng, 50, usual=False)
    for _ in range(60):
        lot = [bytearray(payload) for payload in good]
        for payload in lot:
            for _ in range(rng.randint(0, 3) if payload else 0):
                payload[rng.randrange(len(payload))] = rng.randrange(256)
        path = tmp_path / "run-x.wandb"
        path.write_bytes(plain.framed([bytes(payload) for payload in lot]))
        assert len(plain.read_both_ways(path).rows) <= len(good)
