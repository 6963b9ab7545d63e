"""What may go from a runs folder: nothing that a resume, a replay or a report reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launchers.job import JOBS
from launchers.sweep import REPLACED
from zolab import ledger

#: A temporary file untouched for so long belongs to nobody (seconds).
_FORGOTTEN_SECONDS = 86400.0


def leftovers(folders: Sequence[Path], root: Path) -> list[tuple[Path, int]]:
    """Files and folders that finished cells no longer need, with their sizes in bytes.

    Args:
        folders: the run directories of the runs folder.
        root: the runs folder.
    """
    now = ledger.filesystem_time(root)
    states = {folder.name: ledger.state_of(folder, now=now) for folder in folders}
    found = list((root / REPLACED).glob("*"))
    for folder in folders:
        found += [p for p in folder.glob(".*.tmp") if now - _written(p) > _FORGOTTEN_SECONDS]
        if states[folder.name] == "done":
            found += [p for p in (folder / "checkpoint",) if p.exists()]
    return [(path, _size(path)) for path in sorted(found + _jobs(root / JOBS, states))]


def _jobs(jobs: Path, states: dict[str, str]) -> list[Path]:
    """Records, scripts and outputs of which every cell is done or no longer there."""
    found = []
    kept_arrays = set()
    for record in jobs.glob("*.json"):
        body = ledger.read_json(record)
        if any(states.get(name, "done") != "done" for name in body.get("cells", ())):
            kept_arrays.add(str(body.get("array")))
        else:
            found.append(record)
    unfinished = {name for name, state in states.items() if state != "done"}
    for path in jobs.glob("*.*"):
        first = path.name.replace("-", "_").partition("_")[0]
        if path.suffix in (".out", ".err", ".pkl", ".sh") and first not in kept_arrays | unfinished:
            found.append(path)
    return found


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
