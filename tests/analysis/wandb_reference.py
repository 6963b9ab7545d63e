"""A `.wandb` writer and the plainest possible reader, to hold the fast ones against."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import analysis_synth as synth
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2 as wandb_pb

from zolab.tracking import wandb_native
from zolab.tracking.wandb_file import WandbLog, read_by

BLOCK = 32768
Row = tuple[int, list[tuple[str, Any]]]


def decoder() -> wandb_native.Decoder:
    """The native decoder, which is there wherever a compiler is."""
    found = wandb_native.decoder()
    if found is None:
        assert not synth.REQUIRE_ALL
        pytest.skip("no C compiler")
    return found


def read_both_ways(path: Path) -> WandbLog:
    """The log as numpy reads it; that the native decoder, if there is one, reads the same bits."""
    log = read_by(None, path)
    native = wandb_native.decoder()
    assert native or not synth.REQUIRE_ALL
    if native is not None:
        other = read_by(native, path)
        facts = ("run_id", "start_time", "config", "exit_code", "notes")
        assert [getattr(other, name) for name in facts] == [getattr(log, name) for name in facts]
        assert other.steps.tolist() == log.steps.tolist()
        assert other.columns.keys() == log.columns.keys()
        for key in log.columns:
            assert other.columns[key].tobytes() == log.columns[key].tobytes(), key
            np.testing.assert_array_equal(other.logged[key], log.logged[key])
    return log


def history_record(number: int, row: Row, *, nested: bool) -> bytes:
    """One history record as wandb writes it; keys as one word or as their parts (at `|`)."""
    record = wandb_pb.Record(num=number)
    step, items = row
    for key, value in items:
        item = record.history.item.add(value_json=json.dumps(value, ensure_ascii=False))
        if nested:
            item.nested_key.extend(key.split("|"))
        else:
            item.key = key
    record.history.step.num = step
    return record.SerializeToString()


def run_file(run_id: str, cfg: dict[str, Any], lines: list[dict[str, Any]], start: int) -> bytes:
    """One finished attempt that began at second `start`, as the tracker has wandb write it."""
    begin, end = wandb_pb.Record(), wandb_pb.Record()
    begin.run.run_id = run_id
    begin.run.start_time.seconds = start
    for key, value in {"zolab": cfg, "run_id": run_id, "schema": 1}.items():
        begin.run.config.update.add(key=key, value_json=json.dumps(value))
    end.exit.exit_code = 0
    rows = [
        history_record(number, (row["step"], [*(item for item in row.items() if item[0] != "step"),
                                              ("_step", row["step"])]), nested=True)
        for number, row in enumerate(lines, start=1)
    ]  # fmt: skip
    return framed([begin.SerializeToString(), *rows, end.SerializeToString()])


def framed(payloads: list[bytes]) -> bytes:
    """A file that holds these records."""
    data = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for payload in payloads:
        rest, is_first = payload, True
        while is_first or rest:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += bytes(room)
                continue
            body, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if not rest else 2) if is_first else (4 if not rest else 3)
            crc = zlib.crc32(body, zlib.crc32(bytes([kind])))
            data += struct.pack("<IHB", crc, len(body), kind) + body
            is_first = False
    return bytes(data)


def read(data: bytes) -> tuple[list[tuple[int, dict[str, float]]], list[str]]:
    """(rows, notes) of a file, byte by byte and record by record."""
    notes = []
    if data[:7] != struct.pack("<4sHB", b":W&B", 0xBEE1, 0):
        notes.append("its 7-byte header is damaged or of another version")
    rows, undecodable = [], 0
    for payload in _payloads(data, notes):
        try:
            record = wandb_pb.Record.FromString(payload)
            if record.HasField("history"):
                rows.append(_row(record.history))
        except (DecodeError, ValueError):
            undecodable += 1
    if undecodable:
        notes.append(f"{undecodable} record(s) pass their checksum but cannot be decoded")
    return rows, notes


def _row(history: Any) -> tuple[int, dict[str, float]]:
    values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item}
    step = history.step.num if history.HasField("step") else values.get("_step")
    if not isinstance(step, int):
        raise ValueError("no step")
    return step, {
        key: float("inf") if isinstance(value, int) and value > 1e308 else float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not key.startswith("_")
    }


def _payloads(data: bytes, notes: list[str]) -> list[bytes]:
    found: list[bytes] = []
    damage: list[int] = []
    at, parts = 7, None
    while at + 7 <= len(data):
        block_end = (at // BLOCK + 1) * BLOCK
        if block_end - at < 7:
            at = block_end
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        fits = 1 <= kind <= 4 and at + 7 + length <= block_end
        if fits and at + 7 + length > len(data):
            break
        if not fits or zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            damage.append(at)
            at, parts = block_end, None
            continue
        at += 7 + length
        if kind == 1:
            found.append(body)
            parts = None
        elif kind == 2:
            parts = [body]
        elif parts is not None:
            parts.append(body)
            if kind == 4:
                found.append(b"".join(parts))
                parts = None
    if damage:
        notes.append(
            f"{len(damage)} damaged block(s), the first at byte {damage[0]}; read around them"
        )
    padded = len(data) % BLOCK == 0 and len(data) - at < 7
    if (at < len(data) and not padded) or parts is not None:
        notes.append(f"ends inside a record (at byte {len(data)}); read up to there")
    return found
