"""Readers of finished and unfinished runs into two tidy polars tables.

`read_local` reads run folders, `read_wandb` the offline `.wandb` files below them; both return the
same tables, and where the logs agree, the same numbers bit for bit. Nothing is fatal that leaves
other runs readable: what was skipped or damaged is told in `Runs.notes`.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from analysis import SOURCES
from zolab.errors import UserError
from zolab.tracking.schema import SCHEMA_VERSION
from zolab.tracking.wandb_file import WandbLog, read_log

#: A directory holding one of these is taken for a run folder.
_RUN_FILES = ("config.yaml", "metrics.jsonl", "status.json")


@dataclass(frozen=True)
class Runs:
    """All runs of a folder.

    Attributes:
        runs: one row per run, sorted by run_id: `run_id, model, task, optimizer, optimizer_target,
            sparsity, sparsity_share` (share frozen), `lr, seed, train_steps, state` ("done",
            "unfinished" or "not started"), `last_step` (null when not started), `reported` (what
            the source itself says about the end of the run), and `config.<dotted key>`, the whole
            resolved config as text.
        metrics: one row per logged number, sorted: `run_id, step, key, value`.
        notes: sentences about what was skipped, damaged or left out.
        source: "local" or "wandb".
    """

    runs: pl.DataFrame
    metrics: pl.DataFrame
    notes: tuple[str, ...]
    source: str


@dataclass
class _Run:
    """One run while it is being read; `rows` maps step to {key: number}."""

    run_id: str
    config: dict[str, Any]
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    reported: str = ""
    schema: int | None = None


class _Unreadable(Exception):
    """A run that must be left out; the message says why."""


def read(runs_dir: Path, source: str = "local") -> Runs:
    """Read all runs below `runs_dir` from `source` ("local" or "wandb").

    Raises:
        UserError: unknown source, or no run in the folder.
    """
    if source not in SOURCES:
        raise UserError(f"--source={source}: must be one of {', '.join(SOURCES)}")
    return read_local(runs_dir) if source == "local" else read_wandb(runs_dir)


def read_local(runs_dir: Path) -> Runs:
    """Read run folders: `config.yaml`, `metrics.jsonl`, `status.json` and `result.json`.

    A torn last line of `metrics.jsonl` is left out; of two rows of the same step the later one
    counts, because it was written by the later attempt.

    Args:
        runs_dir: a folder of run folders, or one run folder.

    Raises:
        UserError: the folder is missing, is a file, or holds no run.
    """
    _require_folder(runs_dir)
    below = sorted(path for path in runs_dir.iterdir() if path.is_dir())
    # Dot folders are not runs: replaced ones are kept in one.
    candidates = [runs_dir, *(path for path in below if not path.name.startswith("."))]
    folders = [path for path in candidates if _is_run(path)]
    if not folders:
        raise UserError(f"{runs_dir}: no runs here (no folder with a config.yaml)")
    notes: list[str] = []

    def each() -> Iterator[_Run]:
        for folder in folders:
            try:
                yield _read_folder(folder, notes)
            except (_Unreadable, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                reason = " ".join(str(error).split())
                notes.append(f"run {folder.name}: unreadable, left out ({reason})")

    return _tables(each(), notes, "local")


def read_wandb(runs_dir: Path) -> Runs:
    """Read every offline `.wandb` file below `runs_dir`, and nothing else.

    All files of one run id are merged in the order in which the attempts began; of two rows of the
    same step the later attempt's counts.

    Raises:
        UserError: the folder is missing, is a file, or holds no `.wandb` file.
    """
    _require_folder(runs_dir)
    notes: list[str] = []
    attempts: dict[str, list[WandbLog]] = {}
    paths = _wandb_files(runs_dir, notes)
    if not paths:
        raise UserError(f"{runs_dir}: no .wandb files below it (were the runs tracked by wandb?)")
    for path in paths:
        try:
            log = read_log(path)
        except OSError as error:
            notes.append(f"{path.name}: unreadable, left out ({error.strerror})")
            continue
        where = f"run {log.run_id}, {path.parent.name}"
        notes.extend(f"{where}: {note}" for note in log.notes)
        attempts.setdefault(log.run_id, []).append(log)

    def each() -> Iterator[_Run]:
        for run_id in sorted(attempts):
            try:
                yield _merge(run_id, attempts.pop(run_id))
            except _Unreadable as error:
                notes.append(f"run {run_id}: unreadable, left out ({error})")

    return _tables(each(), notes, "wandb")


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such folder of runs")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; a folder of runs is needed")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{path}: no permission to read this folder of runs")


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in _RUN_FILES)
    except OSError:  # not ours to look into: taken for a run, so that it is named as unreadable
        return True


def _read_folder(folder: Path, notes: list[str]) -> _Run:
    config_path = folder / "config.yaml"
    if not config_path.exists():
        raise _Unreadable("no config.yaml")
    config = yaml.load(config_path.read_text(encoding="utf-8"), Loader=_Yaml)
    run = _Run(run_id=folder.resolve().name, config=config)
    metrics_path = folder / "metrics.jsonl"
    if metrics_path.exists():
        num_bad = 0
        lines = metrics_path.read_bytes().split(b"\n")
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
                    notes.append(f"run {run.run_id}: metrics.jsonl ends in a torn line, left out")
                else:
                    num_bad += 1
                continue
            run.rows[step] = _numbers(row)
        if num_bad:
            notes.append(f"run {run.run_id}: {num_bad} unreadable line(s) in metrics.jsonl")
    status = _json_object(folder / "status.json")
    run.reported = str(status.get("state") or "")
    if status.get("error"):
        run.reported += f": {status['error']}"
    schema = _json_object(folder / "result.json").get("schema")
    run.schema = schema if isinstance(schema, int) else None
    return run


def _json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or {} when it is missing or broken: only comments hang on it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _wandb_files(folder: Path, notes: list[str]) -> list[Path]:
    """Real paths of all `.wandb` files below `folder`, links followed, each once, in order.

    Dot folders are left out, as `read_local` does.
    """
    found: set[Path] = set()
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename}: unreadable, left out ({error.strerror})")

    for root, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # wandb's own `latest-run` link, or a loop
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.update(Path(real, name) for name in files if name.endswith(".wandb"))
    return sorted(found)


def _merge(run_id: str, logs: list[WandbLog]) -> _Run:
    """One run out of all its attempts."""
    # Folder names begin with the second in which the attempt started, so they are the second best.
    if all(log.start_time is not None for log in logs):
        logs.sort(key=lambda log: (log.start_time, str(log.path)))
    else:
        logs.sort(key=lambda log: (log.path.parent.name, str(log.path)))
    configs = [log.config for log in logs if isinstance(log.config.get("zolab"), dict)]
    if not configs and not any(log.rows or log.config or log.notes for log in logs):
        raise _Unreadable("killed before wandb wrote anything to disk")
    if not configs:
        raise _Unreadable("no config record: damaged, or not logged by zolab")
    run = _Run(run_id=run_id, config=configs[-1]["zolab"])
    for log in logs:
        run.rows.update((step, _numbers(row)) for step, row in log.rows)
    code = logs[-1].exit_code
    run.reported = "" if code is None else f"exit code {code}"
    schema = configs[-1].get("schema")
    run.schema = schema if isinstance(schema, int) else None
    return run


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, (int, float))}


def _describe(run: _Run) -> dict[str, Any]:
    """The row of the runs table.

    Raises:
        _Unreadable: the config lacks what every report needs.
    """
    try:
        config = run.config
        optimizer, sparsity = config["optimizer"], config.get("sparsity") or {}
        lr = optimizer.get("lr")
        row: dict[str, Any] = {
            "run_id": run.run_id,
            "model": str(config["model"]["name"]),
            "task": str(config["task"]["name"]),
            "optimizer": str(optimizer["name"]),
            "optimizer_target": str(optimizer.get("_target_", "")),
            "sparsity": str(sparsity.get("name") or "none"),
            "sparsity_share": float(sparsity.get("sparsity") or 0.0),
            "lr": None if lr is None else float(lr),
            "seed": int(config["seed"]),
            "train_steps": int(config["train"]["steps"]),
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _Unreadable(f"its config lacks or garbles {error}") from error
    last = max(run.rows, default=None)
    row["state"] = _state(run, row)
    row["last_step"] = last
    row["reported"] = run.reported
    row |= {f"config.{key}": text for key, text in sorted(flatten(config).items())}
    return row


def is_zero_shot(optimizer: str, target: str) -> bool:
    """Whether a run with this optimizer name and `_target_` evaluates without training."""
    return target.endswith(".ZeroShot") or optimizer.startswith("zero_shot")


def _state(run: _Run, row: dict[str, Any]) -> str:
    """State of a run, from its rows alone, which both sources have."""
    if not run.rows:
        return "not started"
    zero_shot = is_zero_shot(row["optimizer"], row["optimizer_target"])
    last = run.rows.get(0 if zero_shot else row["train_steps"], {})
    return "done" if any(key.startswith("test/") for key in last) else "unfinished"


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested config as {dotted key: text}; 1 and 1.0 give the same text, whatever the source."""
    if isinstance(config, dict) and (config or not prefix):
        flat: dict[str, str] = {}
        for key, value in config.items():
            flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(config, float) and config.is_integer():
        config = int(config)
    if isinstance(config, str):
        return {prefix: config}
    return {prefix: json.dumps(config, sort_keys=True, default=str)}


def _tables(runs: Iterable[_Run], notes: list[str], source: str) -> Runs:
    """The two tables; rows go into flat arrays so that millions of them fit in memory."""
    described: list[dict[str, Any]] = []
    run_codes, key_codes, steps, values = array("i"), array("i"), array("q"), array("d")
    keys: dict[str, int] = {}
    foreign: dict[int, list[str]] = {}
    for run in runs:
        if run.schema is not None and run.schema != SCHEMA_VERSION:
            foreign.setdefault(run.schema, []).append(run.run_id)
            continue
        if any(row["run_id"] == run.run_id for row in described):
            notes.append(f"run {run.run_id}: found twice, counted once")
            continue
        try:
            described.append(_describe(run))
        except _Unreadable as error:
            notes.append(f"run {run.run_id}: unreadable, left out ({error})")
            continue
        for step in sorted(run.rows):
            for key, value in sorted(run.rows[step].items()):
                run_codes.append(len(described) - 1)
                key_codes.append(keys.setdefault(key, len(keys)))
                steps.append(step)
                values.append(value)
    for schema, ids in sorted(foreign.items()):
        notes.append(
            f"left out {len(ids)} run(s) with log schema {schema} (this version reads "
            f"{SCHEMA_VERSION}): {', '.join(ids)}"
        )
    if not described:
        raise UserError("no readable run: " + "; ".join(notes))
    metrics = pl.DataFrame(
        {
            "run_id": _spell([row["run_id"] for row in described], run_codes),
            "step": np.asarray(steps),
            "key": _spell(list(keys), key_codes),
            "value": np.asarray(values),
        }
    )
    # Runs of different methods have different config keys; the table has the union of them.
    core = [key for key in described[0] if not key.startswith("config.")]
    order = core + sorted({key for row in described for key in row} - set(core))
    numeric = {"sparsity_share": pl.Float64, "lr": pl.Float64}
    numeric |= dict.fromkeys(("seed", "train_steps", "last_step"), pl.Int64)
    table = pl.DataFrame(described, schema={key: numeric.get(key, pl.String) for key in order})
    return Runs(table.sort("run_id"), metrics, tuple(notes), source)


def _spell(names: list[str], codes: array[int]) -> pl.Series:
    """The names that `codes` stand for, as a column."""
    return pl.Series(names, dtype=pl.String).gather(np.asarray(codes))


class _Yaml(yaml.SafeLoader):
    """YAML in which `1e-6` is a number, as it is for the program that wrote the file."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
