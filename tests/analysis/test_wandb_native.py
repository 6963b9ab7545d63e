"""The native decoder of `.wandb` files: its numbers, its checksums, and what is left without it.

That it reads files as numpy does is asserted wherever `wandb_reference.read_both_ways` is used.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import zlib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import wandb_reference as plain

from zolab.tracking import wandb_blocks, wandb_file, wandb_native
from zolab.tracking.wandb_native import Decoder


@pytest.fixture(scope="module")
def native() -> Decoder:
    return plain.decoder()


def _assert_right(native: Decoder, text: str) -> bool:
    """That the number is Python's, bit for bit; whether there was one."""
    found = native.number(text.encode())
    if found is not None:
        assert struct.pack("<d", found) == struct.pack("<d", float(json.loads(text))), text
    return found is not None


def _of_bits(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def test_numbers_as_they_are_logged(native: Decoder) -> None:
    rng = random.Random(0)
    usual = [rng.gauss(0, 1) * 10.0 ** rng.randint(-9, 9) for _ in range(10_000)]
    known = sum(_assert_right(native, repr(value)) for value in usual)
    assert known >= 0.99 * len(usual)
    for value in (0.0, -0.0, 1e22, 1e24, math.inf, -math.inf, math.nan, 544829440, 2**53, 0.001):
        assert _assert_right(native, json.dumps(value)), value
    assert all(_assert_right(native, str(rng.randrange(10**k))) for k in range(1, 15))


def test_numbers_of_every_size(native: Decoder) -> None:
    """Every exponent and both signs; subnormals and infinite ones are left to Python."""
    rng = random.Random(1)
    values = [_of_bits(rng.getrandbits(64)) for _ in range(10_000)]
    texts = [repr(value) for value in values if math.isfinite(value)]
    known = sum(_assert_right(native, text) for text in texts)
    assert known >= 0.98 * len(texts)
    for text in ("5e-324", "2.2250738585072011e-308", "2.2250738585072014e-308",
                 "1.7976931348623157e308", "1.7976931348623159e308", "1e309", "1e-400",
                 "1e99999", "1e999999999999", "0e999", "-0.0e-5", "1E+5", "1e+05"):  # fmt: skip
        _assert_right(native, text)


def test_numbers_half_way_between_two(native: Decoder) -> None:
    """Texts of up to 19 digits at, just below and just above the middle of two doubles."""
    rng = random.Random(2)
    for number in range(4000):
        if number % 2:  # exactly in the middle: integers of 54 to 63 bits
            spare = rng.randint(1, 10)
            middle = ((1 << 52 | rng.getrandbits(52)) << spare) + (1 << spare - 1)
            digits = [str(middle + away) for away in (-1, 0, 1)]
        else:  # as near as 17 to 19 digits get
            bits = rng.randrange(1 << 54, 2**63 - 2**54)
            low, high = Fraction(_of_bits(bits)), Fraction(_of_bits(bits + 1))
            middle = (low + high) / 2
            precise = Decimal(middle.numerator) / Decimal(middle.denominator)
            digits = [f"{precise:.{places}e}" for places in (16, 17, 18)]
        for text in digits:
            _assert_right(native, text)


def test_what_is_no_json_number_is_left_to_python(native: Decoder) -> None:
    for text in ("", "-", "+1", "01", "-01", "1.", ".5", "-.5", "1.e5", "1e", "1e+", "--1", "1_0",
                 "0x10", " 1", "1 ", "nan", "inf", "-NaN", "Infinit", "infinity", "1,5", "1e5.0",
                 "true", "null", '"1"', "[1]", "\uff11"):  # fmt: skip
        assert native.number(text.encode()) is None, text
    # Numbers that need more than is looked at: a signless zero, 20 digits, a tie.
    for text in ("-0", "12345678901234567890", "0.12345678901234567890", "9007199254740993"):
        assert native.number(text.encode()) is None, text
    assert native.number(b"0.00000000000000000000000000012") == 1.2e-28


def test_checksums(native: Decoder) -> None:
    rng = random.Random(3)
    for size in (*range(70), 1000, 32_768):
        data = rng.randbytes(size)
        assert native.crc32(data) == zlib.crc32(data)


def test_fragments_are_those_of_numpy(native: Decoder) -> None:
    """Garbage, zeros and good blocks with damage, from any place in a file."""
    rng = random.Random(4)
    good = plain.framed([rng.randbytes(rng.choice([0, 3, 90, 700, 40_000])) for _ in range(300)])
    for _ in range(150):
        size = rng.choice([rng.randrange(8, 200_000), 32_768 * rng.randint(1, 5)])
        data = bytearray(rng.choice([good, good, bytes(200_000), rng.randbytes(200_000)])[:size])
        for _ in range(rng.choice([0, 1, 4])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        view = np.frombuffer(bytes(data) + bytes(wandb_blocks.SPARE_BYTES), np.uint8)
        for skip in (0, 7):
            found = native.fragments(view, len(data), skip)
            inside = view[: len(data)]
            expected = wandb_blocks._checked(wandb_blocks._walk(inside, skip), inside)
            for one, other in zip(found, vars(expected).values(), strict=True):
                np.testing.assert_array_equal(one, other)


def test_more_keys_than_there_is_room_for(tmp_path: Path, native: Decoder) -> None:
    rows = [(n, [(f"key {n} {k}", k / 7) for k in range(90)]) for n in range(60)]
    path = tmp_path / "run-x.wandb"
    for count in (1, 60):  # more than are looked for at first, and than are looked for at all
        payloads = [plain.history_record(n, row, nested=True) for n, row in enumerate(rows[:count])]
        path.write_bytes(plain.framed(payloads))
        assert plain.read_both_ways(path).rows == [(step, dict(row)) for step, row in rows[:count]]


def test_without_a_compiler_numpy_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: Decoder
) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(plain.framed([plain.history_record(0, (3, [("a", 0.5)]), nested=False)]))
    monkeypatch.setattr(wandb_file, "_WORTH_A_COMPILER", 0)
    used: list[bool] = []
    monkeypatch.setattr(wandb_file, "read_by", lambda native, path: used.append(native is not None))

    def ask() -> None:
        monkeypatch.setattr(wandb_native, "_asked", False)
        monkeypatch.setattr(wandb_native, "_loaded", None)
        wandb_file.read_log(path)

    ask()
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    ask()
    monkeypatch.delenv("ZOLAB_NATIVE")
    (tmp_path / "lib").write_bytes(b"no library")
    monkeypatch.setattr(wandb_native, "library", lambda recipe: tmp_path / "lib")
    ask()
    monkeypatch.undo()
    monkeypatch.setattr(wandb_file, "_WORTH_A_COMPILER", 0)
    monkeypatch.setattr(wandb_file, "read_by", lambda native, path: used.append(native is not None))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert shutil.which("cc") is None
    ask()
    assert used == [True, False, False, False]


def test_small_files_ask_for_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(plain.framed([plain.history_record(0, (3, [("a", 0.5)]), nested=False)]))
    monkeypatch.setattr(wandb_native, "decoder", None)
    assert wandb_file.read_log(path).rows == [(3, {"a": 0.5})]
