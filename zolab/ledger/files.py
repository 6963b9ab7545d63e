"""Files that many processes on many machines read and replace, over network filesystems too.

Source: ours, from open(2) on O_EXCL over NFS (link a private file and look at its link count).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


def write_json(path: str | Path, value: Any, sync: bool = True) -> None:
    """Replace `path` by `value` as JSON, so that a reader sees the old or the new text, never half.

    NaN and infinities are written as such; `sync` forces the text to disk before it counts.

    Raises:
        OSError: nothing was replaced (disk full, directory gone); the old file is untouched.
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        write_bytes(temp, json.dumps(value).encode() + b"\n", sync)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def read_json(path: str | Path) -> dict[str, Any]:
    """The object stored at `path`; empty if the file is missing, half-written or not an object."""
    try:
        return parse(Path(path).read_bytes())
    except OSError:
        return {}


def filesystem_time(directory: str | Path) -> float:
    """Now by the clock that stamps files in `directory`; by our own if it cannot be written."""
    temp = Path(directory) / f".clock-{uuid.uuid4().hex}.tmp"
    try:
        temp.touch()
        return temp.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def remove_if(path: Path, expected: bytes) -> bool:
    """Remove `path` if it holds `expected`: move it aside, look at it, else put it back."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    found = read_bytes(aside)
    if found != expected:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
    return found == expected


def link(temp: Path, target: Path) -> bool:
    """Create `target` exclusively. A lost NFS reply may report EEXIST for a link that was made."""
    before = temp.stat().st_nlink
    try:
        os.link(temp, target)
    except FileExistsError:
        return temp.stat().st_nlink > before
    return True


def sweep_temporaries(run_dir: Path, before: float) -> None:
    """Remove what killed processes left behind, if last written before that time."""
    for path in run_dir.glob(".*.tmp"):
        written = mtime(path)
        if written is not None and written < before:
            with contextlib.suppress(OSError):
                path.unlink()


def write_bytes(path: Path, data: bytes, sync: bool) -> None:
    """Make a file that must not exist yet; `sync` forces it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def read_bytes(path: Path) -> bytes | None:
    """The content of a file, None if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def mtime(path: Path) -> float | None:
    """When a file was last written, by the clock of its filesystem; None if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; empty if it is half-written or not an object."""
    with contextlib.suppress(ValueError):
        if isinstance(value := json.loads(raw), dict):
            return value
    return {}
