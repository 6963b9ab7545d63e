"""Whole records of a `.wandb` file: a LevelDB log of 32 KiB blocks, many blocks walked at once.

A block always begins with a fragment, so the n-th fragments of all blocks of a lot are found
together, as arrays. Python touches each fragment once, for its checksum.

Damage never raises: a fragment that cannot be one, or whose checksum is wrong, ends the reading of
its block, and reading goes on at the next, as LevelDB does.

Source: LevelDB log format (block size, fragment types); checksum and header as measured on files
of wandb 0.31.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zolab.tracking.wandb_native import Decoder

BLOCK_BYTES = 32768
_HEADER = struct.Struct("<4sHB")
_HEADER_VALUE = (b":W&B", 0xBEE1, 0)
FRAGMENT_BYTES = 7  # checksum (4), length (2), type (1)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_TYPE_CRC = [zlib.crc32(bytes([kind])) for kind in range(_LAST + 1)]

#: Bytes of a protobuf variable-length integer that are followed; what is longer fits nothing.
LONGEST_VARINT = 5
#: Bytes that may be looked at behind the last record of a lot.
SPARE_BYTES = 16
# Blocks per lot: its bytes and the arrays made of it stay in the processor's cache.
_LOT_BLOCKS = 192

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass
class Records:
    """Some whole records, their bytes in one array.

    Attributes:
        view: the bytes, valid until the next records are asked for, and `SPARE_BYTES` more.
        starts, ends: shape (n,): where each record lies in it.
        numbers: shape (n,), increasing: its place among all records of the file.
    """

    view: Bytes
    starts: Ints
    ends: Ints
    numbers: Ints

    def where(self, chosen: NDArray[np.bool_]) -> Records:
        """Those of a mask of shape (n,)."""
        return Records(self.view, self.starts[chosen], self.ends[chosen], self.numbers[chosen])

    def payloads(self) -> list[tuple[int, bytes]]:
        """(number, bytes of its own) of each."""
        return [
            (number, self.view[start:end].tobytes())
            for number, start, end in zip(
                self.numbers.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True
            )
        ]

    def tags(self) -> Bytes:
        """Shape (n,): first byte of each record, or the one behind its field 1; 0 if unknown."""
        numbered = self.view[self.starts] == 0x08
        _, behind = varint(self.view, self.starts + numbered)
        at = np.where(numbered, behind, self.starts)
        return np.where((at >= self.starts) & (at < self.ends), self.view[at], 0)


def varint(view: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Protobuf variable-length integers at `at`, and the positions after them.

    One that is longer than `LONGEST_VARINT` gives position -1. At most that many bytes are looked
    at.
    """
    value = np.zeros(at.shape, np.int64)
    going = np.ones(at.shape, np.bool_)
    for number in range(LONGEST_VARINT):
        byte = view[at].astype(np.int64)
        value += np.where(going, (byte & 0x7F) << (7 * number), 0)
        at = at + going
        going &= byte >= 0x80
        if not going.any():
            break
    return value, np.where(going, -1, at)


@dataclass
class _Fragments:
    """Fragments in the order of the file.

    Attributes:
        starts, ends: shape (n,): where their bytes lie.
        kinds: shape (n,): types.
        blocks: shape (n,): numbers of their blocks.
        damage: shape (num_blocks,): where the block's damage begins, -1 where there is none.
        rest: first byte that belongs to no fragment, damaged block or padding.
    """

    starts: Ints
    ends: Ints
    kinds: Ints
    blocks: Ints
    damage: Ints
    rest: int


class BlockReader:
    """Reader of one file; `records` is used once.

    Args:
        native: finds the fragments in C.

    Attributes:
        notes: one sentence per kind of damage met; complete when `records` has ended.
    """

    def __init__(self, native: Decoder | None = None) -> None:
        self.notes: list[str] = []
        self._native = native
        self._num_records = 0
        self._num_damaged = 0
        self._first_damage = -1
        self._parts: list[bytes] = []  # of a record that is not complete yet

    def records(self, path: Path) -> Iterator[Records]:
        """Whole records, lot by lot: those in one fragment, then those in several.

        Raises:
            OSError: the file cannot be opened or read.
        """
        lot_bytes = _LOT_BLOCKS * BLOCK_BYTES
        buffer = bytearray(lot_bytes + SPARE_BYTES)
        view = np.frombuffer(buffer, np.uint8)
        offset, skip, rest = 0, _HEADER.size, 0
        with open(path, "rb", buffering=0) as file:
            while True:
                size = _fill(file, memoryview(buffer)[:lot_bytes])
                view[size : size + SPARE_BYTES] = 0
                if not offset and (size < skip or _HEADER.unpack_from(buffer) != _HEADER_VALUE):
                    self.notes.append("its 7-byte header is damaged or of another version")
                if size <= skip:
                    break
                found = self._fragments(view, size, skip)
                rest = found.rest - size
                yield from self._lot(found, view[: size + SPARE_BYTES], offset)
                offset += size
                skip = 0
                if size < lot_bytes:
                    break
        offset += size if not offset else 0
        if self._num_damaged:
            self.notes.append(
                f"{self._num_damaged} damaged block(s), the first at byte {self._first_damage}; "
                "read around them"
            )
        if rest < 0 or self._parts:
            self.notes.append(f"ends inside a record (at byte {offset}); read up to there")

    def _fragments(self, view: Bytes, size: int, skip: int) -> _Fragments:
        if self._native is not None:
            return _Fragments(*self._native.fragments(view, size, skip))
        return _checked(_walk(view[:size], skip), view[:size])

    def _lot(self, found: _Fragments, view: Bytes, offset: int) -> Iterator[Records]:
        """The records that end in a lot of blocks; `offset` is where the lot lies in the file."""
        joined = self._joined(found, view)
        full = found.kinds == _FULL
        ends_here = full.copy()
        ends_here[list(joined)] = True
        numbers = self._num_records + np.cumsum(ends_here) - 1
        self._num_records += int(ends_here.sum())
        damaged = found.damage[found.damage >= 0]
        if damaged.size and not self._num_damaged:
            self._first_damage = offset + int(damaged[0])
        self._num_damaged += damaged.size
        yield Records(view, found.starts[full], found.ends[full], numbers[full])
        if joined:
            data = np.frombuffer(b"".join(joined.values()) + bytes(SPARE_BYTES), np.uint8)
            ends = np.cumsum([len(payload) for payload in joined.values()])
            starts = np.concatenate([[0], ends[:-1]])
            yield Records(data, starts, ends, numbers[list(joined)])

    def _joined(self, found: _Fragments, view: Bytes) -> dict[int, bytes]:
        """Records of several fragments by the number of their last; what is open is kept."""
        joined: dict[int, bytes] = {}
        damaged_before = np.concatenate([[0], np.cumsum(found.damage >= 0)])
        partial = np.flatnonzero(found.kinds != _FULL)
        next_number, barrier = 0, 0
        for number, kind, start, end, damaged in zip(
            partial.tolist(),
            found.kinds[partial].tolist(),
            found.starts[partial].tolist(),
            found.ends[partial].tolist(),
            damaged_before[found.blocks[partial]].tolist(),
            strict=True,
        ):
            if number != next_number or damaged != barrier:
                self._parts = []  # the rest of it was lost
            if kind == _FIRST:
                self._parts = [view[start:end].tobytes()]
            elif self._parts:  # otherwise it continues a record whose start was lost
                self._parts.append(view[start:end].tobytes())
                if kind == _LAST:
                    joined[number] = b"".join(self._parts)
                    self._parts = []
            next_number, barrier = number + 1, damaged
        if next_number != found.kinds.size or barrier != damaged_before[-1]:
            self._parts = []
        return joined


def _fill(file: BinaryIO, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; how many bytes."""
    size = 0
    while size < len(buffer):
        more = file.readinto(buffer[size:])
        if not more:
            break
        size += more
    return size


def _walk(view: Bytes, skip: int) -> _Fragments:
    """Every fragment whose header can be one, checksums aside; the first is `skip` bytes in."""
    num_blocks = -(-view.size // BLOCK_BYTES)
    at = np.arange(num_blocks) * BLOCK_BYTES
    at[0] = skip
    block_ends = (np.arange(num_blocks) + 1) * BLOCK_BYTES
    last_headers = np.minimum(block_ends, view.size) - FRAGMENT_BYTES
    damage = np.full(num_blocks, -1)
    counts = np.zeros(num_blocks, np.int64)
    going = np.arange(num_blocks)
    rounds: list[tuple[Ints, Ints, Ints, Ints]] = []
    while True:
        going = going[at[going] <= last_headers[going]]
        if not going.size:
            break
        here = at[going]
        kinds = view[here + 6].astype(np.int64)
        starts = here + FRAGMENT_BYTES
        ends = starts + view[here + 4] + 256 * view[here + 5].astype(np.int64)
        sound = (kinds >= _FULL) & (kinds <= _LAST) & (ends <= block_ends[going])
        damage[going[~sound]] = here[~sound]
        sound &= ends <= view.size  # the file was cut inside: not damage, only an end
        going, starts, ends, kinds = going[sound], starts[sound], ends[sound], kinds[sound]
        rounds.append((going, starts, ends, kinds))
        counts[going] += 1
        at[going] = ends
    rest = view.size
    is_padding = block_ends[-1] == view.size < at[-1] + FRAGMENT_BYTES
    if damage[-1] < 0 and not is_padding:
        rest = int(at[-1])
    parts = [np.concatenate(column) for column in zip(*rounds, strict=True)]
    blocks, starts, ends, kinds = parts or [np.empty(0, np.int64)] * 4
    # From the order of the rounds to that of the file.
    order = np.empty(blocks.size, np.int64)
    nth = np.repeat(np.arange(len(rounds)), [columns[0].size for columns in rounds])
    order[(np.cumsum(counts) - counts)[blocks] + nth] = np.arange(blocks.size)
    return _Fragments(starts[order], ends[order], kinds[order], blocks[order], damage, rest)


def _checked(found: _Fragments, view: Bytes) -> _Fragments:
    """What is left when every block ends at its first wrong checksum."""
    stored = np.zeros(found.starts.size, np.int64)
    for byte in range(4):
        stored |= view[found.starts - FRAGMENT_BYTES + byte].astype(np.int64) << (8 * byte)
    data = memoryview(view)
    actual = [
        zlib.crc32(data[start:end], _TYPE_CRC[kind])
        for start, end, kind in zip(
            found.starts.tolist(), found.ends.tolist(), found.kinds.tolist(), strict=True
        )
    ]
    wrong = np.flatnonzero(stored != np.array(actual, np.int64))
    if not wrong.size:
        return found
    blocks, first = np.unique(found.blocks[wrong], return_index=True)
    ends_at = np.full(found.damage.size, view.size)
    ends_at[blocks] = found.starts[wrong[first]] - FRAGMENT_BYTES
    found.damage[blocks] = ends_at[blocks]
    kept = found.starts <= ends_at[found.blocks]
    rest = view.size if found.damage[-1] >= 0 else found.rest
    return _Fragments(
        found.starts[kept], found.ends[kept], found.kinds[kept], found.blocks[kept],
        found.damage, rest,
    )  # fmt: skip
