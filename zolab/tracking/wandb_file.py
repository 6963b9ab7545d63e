"""Reader of offline `.wandb` files, without the wandb service.

The file is a LevelDB log (`wandb_blocks`) in which each record is one protobuf `Record`, most of
them history rows (`wandb_rows`). wandb 0.30 removed the reader it used to ship, so this one is
ours; only the protobuf classes come from wandb.

Damage never raises; what was lost is told in `WandbLog.notes`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zolab.tracking.wandb_native import Decoder

# Tags of a record's one field that tells what it is of (`wandb_internal.Record`). Every log call
# also writes two summary records, which repeat the history: they are skipped undecoded.
_HISTORY, _SUMMARY = 0x12, 0x1A

# Bytes above which the native decoder is used, which has to be built once: half a second.
_WORTH_A_COMPILER = 4 << 20


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
    from zolab.tracking import wandb_native

    large = path.stat().st_size >= _WORTH_A_COMPILER
    return read_by(wandb_native.decoder() if large else None, path)


def read_by(native: Decoder | None, path: Path) -> WandbLog:
    """`read_log` by the native decoder, or by numpy."""
    # Imported here because they take about half a second that runs and local reports need not pay.
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as wandb_pb

    from zolab.tracking.wandb_blocks import BlockReader
    from zolab.tracking.wandb_rows import History

    log = WandbLog(path=path, run_id=path.stem.removeprefix("run-"))
    history = History(native)
    reader = BlockReader(native)
    num_undecodable = 0
    for records in reader.records(path):
        tags = records.tags()
        history.add(records.where(tags == _HISTORY))
        for number, payload in records.where((tags != _HISTORY) & (tags != _SUMMARY)).payloads():
            try:
                record = wandb_pb.Record.FromString(payload)
                if record.HasField("history"):
                    history.put(number, *_row(record))
                else:
                    _take(record, log)
            except (DecodeError, ValueError):
                num_undecodable += 1
    for number, payload in history.odd:
        try:
            history.put(number, *_row(wandb_pb.Record.FromString(payload)))
        except (DecodeError, ValueError):
            num_undecodable += 1
    log.notes.extend(reader.notes)
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
