"""All runs of a folder or project, finished or not, as tables.

`read` takes run folders, the offline `.wandb` files below them, or a wandb project online; all
give the same tables, and where the logs agree, the same numbers bit for bit. Nothing is fatal that
leaves other runs readable: what was skipped or damaged is told in `Runs.notes`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis import SOURCES
from analysis.reading.cache import Cache
from analysis.reading.folders import read_folders, run_folders
from analysis.reading.log import RunLog, Unreadable, Watch
from analysis.reading.offline import read_offline, wandb_files
from analysis.reading.online import read_online
from zolab.errors import UserError
from zolab.tracking.schema import SCHEMA_VERSION

#: Classes that take no step; their runs are done with the evaluation at step 0.
_UNTRAINED = (".ZeroShot", ".ICL", ".LinearProbing")


@dataclass(frozen=True)
class Runs:
    """All runs of a folder or project.

    Attributes:
        runs: one row per run, sorted by run_id: `run_id, model, task, optimizer, optimizer_target,
            sparsity, sparsity_share` (share frozen), `lr, seed, train_steps, state` ("done",
            "unfinished" or "not started"), `last_step` (null when not started), `reported` (what
            the source itself says about the end of the run), and `config.<dotted key>`, the whole
            resolved config as text.
        logs: run_id to its rows, see `reading.log.RunLog.table`.
        notes: sentences about what was skipped, damaged or left out.
        source: "local", "wandb" or "online".
    """

    runs: pl.DataFrame
    logs: dict[str, pl.DataFrame]
    notes: tuple[str, ...]
    source: str

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """One row per logged number, sorted: `run_id, step, key, value`."""
        parts = [
            log.unpivot(index="step", variable_name="key", value_name="value")
            .drop_nulls("value")
            .sort("step", "key")
            .select(pl.lit(run_id).alias("run_id"), "step", "key", "value")
            for run_id, log in sorted(self.logs.items())
            if log.width > 1
        ]
        schema = {"run_id": pl.String, "step": pl.Int64, "key": pl.String, "value": pl.Float64}
        return pl.concat(parts) if parts else pl.DataFrame(schema=schema)

    @cached_property
    def tidy(self) -> pl.DataFrame:
        """`metrics` with what each run is beside every number: model, task, optimizer, …"""
        about = ["run_id", "model", "task", "optimizer", "sparsity", "sparsity_share", "lr", "seed"]
        return self.metrics.join(self.runs.select(about), on="run_id", how="left")


def read(
    where: Path | str, source: str = "local", *, cache: bool = True, watch: Watch | None = None
) -> Runs:
    """Read all runs from a source.

    Args:
        where: folder of run folders; for "online" the name of a wandb project.
        source: "local", "wandb" (the offline `.wandb` files alone) or "online".
        cache: keep columnar copies beside the runs and use those of unchanged files.
        watch: told of every log that has been read.

    Raises:
        UserError: unknown source, no folder, or no run in it.
    """
    if source not in SOURCES:
        raise UserError(f"--source={source}: must be one of {', '.join(SOURCES)}")
    if source == "online":
        notes: list[str] = []
        return _tables(read_online(str(where), notes, watch=watch), notes, source)
    reader = read_local if source == "local" else read_wandb
    return reader(Path(where), cache=cache, watch=watch)


def read_local(runs_dir: Path, *, cache: bool = True, watch: Watch | None = None) -> Runs:
    """Read run folders, see `reading.folders`.

    Args:
        runs_dir: a folder of run folders, or one run folder.
        cache: see `read`.
        watch: see `read`.

    Raises:
        UserError: the folder is missing, is a file, or holds no run.
    """
    _require_folder(runs_dir)
    folders = run_folders(runs_dir)
    if not folders:
        raise UserError(f"{runs_dir}: no runs here (no folder with a config.yaml)")
    notes: list[str] = []
    copies = Cache(runs_dir, cache and runs_dir not in folders)
    return _tables(read_folders(folders, copies, notes, _num_cpus(), watch), notes, "local")


def read_wandb(runs_dir: Path, *, cache: bool = True, watch: Watch | None = None) -> Runs:
    """Read every offline `.wandb` file below `runs_dir`, and nothing else.

    All files of one run id are merged in the order in which the attempts began; of two rows of the
    same step the later attempt's counts.

    Raises:
        UserError: the folder is missing, is a file, or holds no `.wandb` file.
    """
    _require_folder(runs_dir)
    notes: list[str] = []
    paths = wandb_files(runs_dir, notes)
    if not paths:
        raise UserError(f"{runs_dir}: no .wandb files below it (were the runs tracked by wandb?)")
    copies = Cache(runs_dir, cache and run_folders(runs_dir)[:1] != [runs_dir])
    return _tables(read_offline(paths, copies, notes, _num_cpus(), watch), notes, "wandb")


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such folder of runs")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; a folder of runs is needed")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{path}: no permission to read this folder of runs")


def describe(run: RunLog) -> dict[str, Any]:
    """The row of the runs table.

    Raises:
        Unreadable: the config lacks what every report needs.
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
        raise Unreadable(f"its config lacks or garbles {error}") from error
    row["state"] = _state(run, row)
    row["last_step"] = run.table["step"][-1] if run.table.height else None
    row["reported"] = run.reported
    row |= {f"config.{key}": text for key, text in sorted(flatten(config).items())}
    return row


def is_zero_shot(optimizer: str, target: str) -> bool:
    """Whether a run with this optimizer name and `_target_` evaluates without training."""
    return target.endswith(_UNTRAINED) or optimizer.startswith("zero_shot")


def _state(run: RunLog, row: dict[str, Any]) -> str:
    """State of a run, from its rows alone, which both sources have."""
    if not run.table.height:
        return "not started"
    zero_shot = is_zero_shot(row["optimizer"], row["optimizer_target"])
    last = 0 if zero_shot else row["train_steps"]
    steps = run.table["step"].to_numpy()
    at = int(steps.searchsorted(last))
    if at == steps.size or steps[at] != last:
        return "unfinished"
    read = [name for name in run.table.columns if name.startswith("test/")]
    return "done" if any(run.table[name][at] is not None for name in read) else "unfinished"


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


def _tables(logs: Iterable[RunLog], notes: list[str], source: str) -> Runs:
    """Describe and sort the runs; those of other versions or without a usable config are left."""
    described: dict[str, dict[str, Any]] = {}
    kept: dict[str, pl.DataFrame] = {}
    foreign: dict[int, list[str]] = {}
    for log in logs:
        if log.schema is not None and log.schema != SCHEMA_VERSION:
            foreign.setdefault(log.schema, []).append(log.run_id)
            continue
        if log.run_id in kept:
            notes.append(f"run {log.run_id}: found twice, counted once")
            continue
        try:
            described[log.run_id] = describe(log)
        except Unreadable as error:
            notes.append(f"run {log.run_id}: unreadable, left out ({error})")
            continue
        kept[log.run_id] = log.table
    for schema, ids in sorted(foreign.items()):
        notes.append(
            f"left out {len(ids)} run(s) with log schema {schema} (this version reads "
            f"{SCHEMA_VERSION}): {', '.join(ids)}"
        )
    if not described:
        raise UserError("no readable run: " + "; ".join(notes))
    rows = list(described.values())
    # Runs of different methods have different config keys; the table has the union of them.
    core = [key for key in rows[0] if not key.startswith("config.")]
    order = core + sorted({key for row in rows for key in row} - set(core))
    numeric = {"sparsity_share": pl.Float64, "lr": pl.Float64}
    numeric |= dict.fromkeys(("seed", "train_steps", "last_step"), pl.Int64)
    table = pl.DataFrame(rows, schema={key: numeric.get(key, pl.String) for key in order})
    return Runs(table.sort("run_id"), dict(sorted(kept.items())), tuple(notes), source)
