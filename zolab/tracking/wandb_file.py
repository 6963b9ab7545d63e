"""Reader of offline `.wandb` files, without the wandb service.

The file is a 7-byte header and then a LevelDB log: blocks of 32 KiB, each record split into
fragments with their own checksum, each whole record one protobuf `Record`. wandb 0.30 removed the
reader it used to ship, so this one is ours; only the protobuf classes come from wandb.

Damage never raises: a fragment whose checksum is wrong ends the reading of its block, and reading
goes on at the next block boundary, as LevelDB does. What was lost is told in `WandbLog.notes`.

Source: LevelDB log format (block size, fragment types); checksum and header as measured on files
of wandb 0.31.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 32768
_HEADER = struct.Struct("<4sHB")
_HEADER_VALUE = (b":W&B", 0xBEE1, 0)
_FRAGMENT = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_TYPE_CRC = {kind: zlib.crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}

# Protobuf field numbers of `wandb_internal.Record` that are worth decoding. Every log call also
# writes two summary records (field 3), which repeat the history: they are skipped undecoded.
_FIELD_HISTORY, _FIELD_CONFIG, _FIELD_RUN, _FIELD_EXIT = 2, 5, 17, 18
_WANTED = frozenset({_FIELD_HISTORY, _FIELD_CONFIG, _FIELD_RUN, _FIELD_EXIT})

# What a record is of: behind its running number (field 1) nearly always stands the one field that
# tells, with a tag of one byte.
_KIND = re.compile(rb"(?:\x08[\x80-\xff]*[\x00-\x7f])?([\x12\x1a])", re.DOTALL)
_HISTORY, _SUMMARY = b"\x12", b"\x1a"


@dataclass
class WandbLog:
    """What one `.wandb` file holds.

    Attributes:
        path: the file.
        run_id: wandb id of the run; from the file's name when the run record was lost.
        start_time: seconds since 1970 at which the attempt began, or None when lost.
        config: wandb config, later updates over earlier ones.
        steps: shape (num_rows,): step of each history row in the order of the file.
        columns: key to its number in each row, shape (num_rows,); where the row does not have it
            the number is 0 and `logged` is false. Values that are no numbers are left out, and
            so are the keys that wandb adds itself (they begin with an underscore).
        logged: key to whether each row has it, shape (num_rows,), dtype bool.
        exit_code: exit code of the attempt, or None when it ended without one.
        notes: one sentence per kind of damage met.
    """

    path: Path
    run_id: str
    start_time: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    logged: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    exit_code: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """(step, {key: number}) in the order of the file."""
        columns = [(key, self.columns[key], self.logged[key]) for key in self.columns]
        return [
            (int(step), {key: float(values[i]) for key, values, there in columns if there[i]})
            for i, step in enumerate(self.steps)
        ]


def read_log(path: Path) -> WandbLog:
    """Read one `.wandb` file up to and around any damage.

    Args:
        path: a `run-<id>.wandb` file, finished or still being written.

    Returns:
        Everything that could be read; `notes` says what could not.

    Raises:
        OSError: the file cannot be opened or read at all.
    """
    # Imported here because they take about half a second that runs and local reports need not pay.
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as wandb_pb

    from zolab.tracking.wandb_rows import History

    log = WandbLog(path=path, run_id=path.stem.removeprefix("run-"))
    rows: list[bytes] = []
    data = path.read_bytes()
    if len(data) < _HEADER.size or _HEADER.unpack_from(data) != _HEADER_VALUE:
        log.notes.append("its 7-byte header is damaged or of another version")
    num_undecodable = 0
    kind_of = _KIND.match
    for payload in _payloads(data, log.notes):
        plain = kind_of(payload)
        kind = plain[1] if plain else b""
        if kind == _HISTORY:
            rows.append(payload)
        elif kind != _SUMMARY:
            try:
                _take(wandb_pb.Record.FromString(payload), log)
            except (DecodeError, ValueError):
                num_undecodable += 1
    history = History(rows)
    for number in history.odd:
        try:
            history.put(number, *_row(wandb_pb.Record.FromString(rows[number])))
        except (DecodeError, ValueError):
            num_undecodable += 1
    if num_undecodable:
        log.notes.append(f"{num_undecodable} record(s) pass their checksum but cannot be decoded")
    log.steps, log.columns, log.logged = history.columns()
    return log


def _row(record: Any) -> tuple[int, dict[str, Any]]:
    """Step and values of a history record.

    Raises:
        ValueError: a value is not JSON (`json.JSONDecodeError`), or there is no step.
    """
    history = record.history
    row = _items(history.item)
    step = history.step.num if history.HasField("step") else row.get("_step")
    if not isinstance(step, int):
        raise ValueError("history row without a step")
    return step, row


def _take(record: Any, log: WandbLog) -> None:
    """Move what a record other than history tells into `log`.

    Raises:
        ValueError: a value is not JSON (`json.JSONDecodeError`).
    """
    if record.HasField("config"):
        log.config.update(_items(record.config.update))
    elif record.HasField("run"):
        run = record.run
        log.run_id = run.run_id or log.run_id
        log.start_time = run.start_time.seconds + run.start_time.nanos * 1e-9
        log.config.update(_items(run.config.update))
    elif record.HasField("exit"):
        log.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    """`{key: value}` of repeated protobuf items; nested keys are joined with a slash."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _payloads(data: bytes, notes: list[str]) -> Iterator[bytes]:
    """Whole records of a LevelDB log; damage is skipped to the next block and noted."""
    offset = _HEADER.size
    parts: list[bytes] | None = None  # fragments of a record that is not complete yet
    num_damaged, first_damage = 0, 0
    while offset + _FRAGMENT.size <= len(data):
        block_end = (offset // BLOCK_BYTES + 1) * BLOCK_BYTES
        if block_end - offset < _FRAGMENT.size:
            offset = block_end
            continue
        crc, length, kind = _FRAGMENT.unpack_from(data, offset)
        start = offset + _FRAGMENT.size
        end = start + length
        if kind in _TYPE_CRC and end <= block_end and end > len(data):
            break  # the file was cut inside this fragment: not damage, only an end
        body = data[start:end]
        if kind not in _TYPE_CRC or end > block_end or zlib.crc32(body, _TYPE_CRC[kind]) != crc:
            num_damaged += 1
            first_damage = first_damage or offset
            parts = None
            offset = block_end
            continue
        offset = end
        if kind == _FULL:
            parts = None
            yield body
        elif kind == _FIRST:
            parts = [body]
        elif parts is not None:  # otherwise it continues a record whose start was lost
            parts.append(body)
            if kind == _LAST:
                yield b"".join(parts)
                parts = None
    if num_damaged:
        notes.append(
            f"{num_damaged} damaged block(s), the first at byte {first_damage}; read around them"
        )
    if offset < len(data) or parts is not None:
        notes.append(f"ends inside a record (at byte {len(data)}); read up to there")


def _record_field(payload: bytes) -> int:
    """Number of the payload's record field (2 = history, 3 = summary, …), -1 if there is none.

    Walks the top-level protobuf tags only, which is what makes skipping summaries cheap.
    """
    position = 0
    try:
        while position < len(payload):
            tag, position = _varint(payload, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 0:
                _, position = _varint(payload, position)
            elif wire_type == 2:
                # `control`, `uuid` and `_info` may stand beside the one field that tells the kind.
                if number not in (16, 19, 200):
                    return number
                length, position = _varint(payload, position)
                position += length
            else:
                return -1
    except IndexError:
        pass
    return -1


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Protobuf variable-length integer at `position` and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
