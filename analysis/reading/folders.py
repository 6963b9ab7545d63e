"""Reader of run folders: `config.yaml`, `metrics.jsonl`, `status.json`, `result.json`."""

from __future__ import annotations

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import yaml

from analysis.reading.cache import Cache, fingerprint
from analysis.reading.log import EMPTY, RunLog, Unreadable, Watch, from_rows, in_order

#: A directory holding one of these is taken for a run folder.
_RUN_FILES = ("config.yaml", "metrics.jsonl", "status.json")
_ALL_FILES = (*_RUN_FILES, "result.json")
# The fast parser reads strict JSON, without NaN and infinities. These numbers stand for them on
# the way through it; no log holds them, as they are the largest a float can be.
_STAND_INS = (
    (b"NaN", -1.7976931348623157e308, float("nan")),
    (b"-Infinity", -1.7976931348623155e308, float("-inf")),
    (b"Infinity", 1.7976931348623157e308, float("inf")),
)


#: Bytes below which the plain parser is the quicker one.
_SMALL = 32768


def run_folders(runs_dir: Path) -> list[Path]:
    """Run folders below `runs_dir` in order, or itself; dot folders are none."""
    below = sorted(path for path in runs_dir.iterdir() if path.is_dir())
    candidates = [runs_dir, *(path for path in below if not path.name.startswith("."))]
    return [path for path in candidates if _is_run(path)]


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in _RUN_FILES)
    except OSError:  # not ours to look into: taken for a run, so that it is named as unreadable
        return True


def read_folders(
    folders: list[Path], cache: Cache, notes: list[str], threads: int, watch: Watch | None = None
) -> list[RunLog]:
    """Read run folders, several at a time; what cannot be read is told in `notes`."""

    def one(folder: Path) -> RunLog | str:
        try:
            return read_cached(folder, cache)
        except (Unreadable, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            return f"run {folder.name}: unreadable, left out ({reason})"

    logs: list[RunLog] = []
    with ThreadPoolExecutor(threads) as pool:
        for number, log in enumerate(pool.map(one, folders), start=1):
            if isinstance(log, str):
                notes.append(log)
            else:
                logs.append(log)
                notes.extend(log.notes)
            if watch is not None:
                watch(number, len(folders))
    return logs


def read_cached(folder: Path, cache: Cache) -> RunLog:
    """`read_folder`, or the copy of what it gave for the same files."""
    mark = fingerprint([folder / name for name in _ALL_FILES])
    found = cache.get(folder, mark)
    if found is not None:
        facts, table = found
        return RunLog(table=table, **facts)
    log = read_folder(folder)
    facts = {key: value for key, value in vars(log).items() if key != "table"}
    cache.put(folder, mark, facts, log.table)
    return log


def read_folder(folder: Path) -> RunLog:
    """Read one run folder.

    A torn last line of `metrics.jsonl` is left out; of two rows of the same step the later one
    counts, because it was written by the later attempt.

    Raises:
        Unreadable: there is no config.
        OSError, UnicodeDecodeError, yaml.YAMLError: a file cannot be read.
    """
    config_path = folder / "config.yaml"
    if not config_path.exists():
        raise Unreadable("no config.yaml")
    config = yaml.load(config_path.read_text(encoding="utf-8"), Loader=_Yaml)
    log = RunLog(run_id=folder.resolve().name, config=config, table=EMPTY)
    metrics_path = folder / "metrics.jsonl"
    if metrics_path.exists():
        log.table = in_order(_metrics(metrics_path.read_bytes(), log))
    status = json_object(folder / "status.json")
    log.reported = str(status.get("state") or "")
    if status.get("error"):
        log.reported += f": {status['error']}"
    schema = json_object(folder / "result.json").get("schema")
    log.schema = schema if isinstance(schema, int) else None
    return log


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or {} when it is missing or broken: only comments hang on it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _metrics(data: bytes, log: RunLog) -> pl.DataFrame:
    """Rows as logged; the fast parser first, line by line where it gives up."""
    if not data.strip():
        return EMPTY
    table = None if len(data) < _SMALL else _parse_all(data)
    return _parse_lines(data, log) if table is None else table


def _parse_all(data: bytes) -> pl.DataFrame | None:
    """All lines at once; None if any is not a flat object with a whole number as its step."""
    swapped = []
    for word, number, meant in _STAND_INS:
        if b":" + word in data or b": " + word in data:
            data = re.sub(rb"(:\s?)" + word, rb"\g<1>" + repr(number).encode(), data)
            swapped.append((number, meant))
    try:
        options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        table = pa_json.read_json(io.BytesIO(data), read_options=options)
    except pa.ArrowException:
        return None
    if "step" not in table.column_names or not pa.types.is_integer(table.schema.field("step").type):
        return None
    if table["step"].null_count:
        return None
    columns: dict[str, Any] = {"step": table["step"].cast(pa.int64())}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if name == "step" or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            if pa.types.is_null(kind) or pa.types.is_string(kind) or name == "step":
                continue
            return None  # booleans and nested values: rare, and told apart line by line
        column = column.cast(pa.float64(), safe=False)
        for number, meant in swapped:
            column = pc.if_else(pc.equal(column, number), meant, column)
        columns[name] = column
    return pl.DataFrame(pl.from_arrow(pa.table(columns)))


def _parse_lines(data: bytes, log: RunLog) -> pl.DataFrame:
    """Line by line; broken ones are counted in the notes."""
    num_bad = 0
    rows: list[tuple[int, dict[str, Any]]] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = row.pop("step")
            if not isinstance(step, int):
                raise ValueError("step is not a whole number")
        except (ValueError, KeyError, AttributeError, TypeError, UnicodeDecodeError):
            if number == len(lines):
                log.notes.append(f"run {log.run_id}: metrics.jsonl ends in a torn line, left out")
            else:
                num_bad += 1
            continue
        rows.append((step, row))
    if num_bad:
        log.notes.append(f"run {log.run_id}: {num_bad} unreadable line(s) in metrics.jsonl")
    return from_rows(rows)


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which `1e-6` is a number, as it is for the program that wrote the file."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
