"""Reader of offline `.wandb` files: all attempts of a run become one log."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl

from analysis.reading.cache import Cache, fingerprint
from analysis.reading.log import RunLog, Unreadable, Watch, from_columns, in_order
from zolab.tracking.wandb_file import read_log

#: Below this many bytes a second process costs more than it saves.
_PARALLEL_BYTES = 64 << 20


@dataclass
class _Attempt:
    """One `.wandb` file."""

    path: Path
    run_id: str
    start_time: float | None
    config: dict[str, Any]
    exit_code: int | None
    notes: list[str]
    table: pl.DataFrame


def wandb_files(folder: Path, notes: list[str]) -> list[Path]:
    """Real paths of all `.wandb` files below `folder`, links followed, each once, in order.

    Dot folders are left out, as the reader of run folders does.
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


def read_offline(
    paths: Sequence[Path], cache: Cache, notes: list[str], workers: int, watch: Watch | None = None
) -> list[RunLog]:
    """Read `.wandb` files and merge those of one run id; what cannot be read is told in `notes`."""
    attempts: dict[str, list[_Attempt]] = {}
    for number, (path, found) in enumerate(_read_all(paths, cache, workers), start=1):
        if watch is not None:
            watch(number, len(paths))
        if isinstance(found, str):
            notes.append(f"{path.name}: unreadable, left out ({found})")
            continue
        facts, table = found
        attempt = _Attempt(path=path, table=table, **facts)
        where = f"run {attempt.run_id}, {path.parent.name}"
        notes.extend(f"{where}: {note}" for note in attempt.notes)
        attempts.setdefault(attempt.run_id, []).append(attempt)
    logs = []
    for run_id in sorted(attempts):
        try:
            logs.append(_merge(run_id, attempts.pop(run_id)))
        except Unreadable as error:
            notes.append(f"run {run_id}: unreadable, left out ({error})")
    return logs


_Found = tuple[dict[str, Any], pl.DataFrame]


def _read_all(
    paths: Sequence[Path], cache: Cache, workers: int
) -> Iterator[tuple[Path, _Found | str]]:
    """Every file in order, from its copy or anew; big lots in several processes."""
    marks = {path: fingerprint([path]) for path in paths}
    known = {path: cache.get(path, marks[path]) for path in paths}
    new = [path for path in paths if known[path] is None]
    sizes = sum(path.stat().st_size for path in new if path.exists())
    made: dict[Path, _Found | str] = {}
    if sizes > _PARALLEL_BYTES and workers > 1 and len(new) > 1:
        try:
            # Spawned, not forked: polars has threads, which a fork would leave behind.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                jobs = pool.map(_keep, new, [marks[path] for path in new], [cache] * len(new))
                for path, left in zip(new, jobs, strict=True):
                    # Numbers go from process to process through the copy, which is mapped.
                    found = cache.get(path, marks[path]) if left is None else left
                    if found is not None:
                        made[path] = found
        except (BrokenExecutor, OSError):
            made.clear()  # no second process to be had here: one does it too
    for path in paths:
        copy = known[path]
        if copy is not None:
            yield path, copy
        elif path in made:
            yield path, made.pop(path)
        else:
            found = _read_one(path)
            if not isinstance(found, str):
                cache.put(path, marks[path], *found)
            yield path, found


def _keep(path: Path, mark: str, cache: Cache) -> _Found | str | None:
    """Read one file and make its copy; what was read is given back only if there is none."""
    found = _read_one(path)
    if isinstance(found, str):
        return found
    return None if cache.put(path, mark, *found) else found


def _read_one(path: Path) -> _Found | str:
    """Facts and rows of one file, or why it cannot be opened."""
    try:
        log = read_log(path)
    except OSError as error:
        return str(error.strerror)
    facts = {
        "run_id": log.run_id,
        "start_time": log.start_time,
        "config": log.config,
        "exit_code": log.exit_code,
        "notes": log.notes,
    }
    return facts, from_columns(log.steps, log.columns, log.logged)


def _merge(run_id: str, attempts: list[_Attempt]) -> RunLog:
    """One run out of all its attempts; of two rows of one step the later attempt's counts."""
    # Folder names begin with the second in which the attempt started, so they are the second best.
    if all(attempt.start_time is not None for attempt in attempts):
        attempts.sort(key=lambda a: (a.start_time, str(a.path)))
    else:
        attempts.sort(key=lambda a: (a.path.parent.name, str(a.path)))
    configs = [a.config for a in attempts if isinstance(a.config.get("zolab"), dict)]
    if not configs and not any(a.table.height or a.config or a.notes for a in attempts):
        raise Unreadable("killed before wandb wrote anything to disk")
    if not configs:
        raise Unreadable("no config record: damaged, or not logged by zolab")
    code = attempts[-1].exit_code
    schema = configs[-1].get("schema")
    return RunLog(
        run_id=run_id,
        config=configs[-1]["zolab"],
        table=in_order(pl.concat([a.table for a in attempts], how="diagonal")),
        reported="" if code is None else f"exit code {code}",
        schema=schema if isinstance(schema, int) else None,
    )
