"""Columnar copies of logs that were read before, in one dot folder beside the runs.

One Arrow file per log, a large one memory-mapped when it is used again. A copy counts only for
files of the same size, time of change, and first and last bytes; anything odd about it means
reading anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

#: Name of the folder; dot folders are never taken for runs.
FOLDER = ".report-cache"
#: Raised whenever a reader would make something else of the same bytes.
_VERSION = 1
_ENDS = 4096
_META = b"zolab"
_MAPPED = 1 << 20


def fingerprint(paths: Sequence[Path]) -> str:
    """What identifies the present content of some files; missing ones count as missing."""
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        try:
            with open(path, "rb") as file:
                facts = os.fstat(file.fileno())
                digest.update(f"{facts.st_size} {facts.st_mtime_ns} ".encode())
                digest.update(file.read(_ENDS))
                if facts.st_size > _ENDS:
                    file.seek(max(_ENDS, facts.st_size - _ENDS))
                    digest.update(file.read(_ENDS))
        except OSError as error:
            digest.update(f"- {error.errno}".encode())
    return digest.hexdigest()


class Cache:
    """Copies for one folder of runs.

    Args:
        root: the folder of runs; where nothing can be written beside the runs, nothing is kept.
        use: False reads and writes nothing.
    """

    def __init__(self, root: Path, use: bool = True) -> None:
        self._root = root
        self._folder = root / FOLDER
        self._use = use

    def get(self, source: Path, mark: str) -> tuple[dict[str, Any], pl.DataFrame] | None:
        """The copy of the log at `source` with its facts, if it was made from the same content."""
        if not self._use:
            return None
        try:
            path = self._path(source)
            if path.stat().st_size < _MAPPED:  # a map costs more than the copy of a small file
                table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
            else:
                with pa.memory_map(str(path)) as file:
                    table = pa.ipc.open_file(file).read_all()
            facts = json.loads((table.schema.metadata or {})[_META])
            if facts.pop("fingerprint") != mark:
                return None
            return facts, pl.DataFrame(pl.from_arrow(table))
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
            return None

    def put(self, source: Path, mark: str, facts: dict[str, Any], table: pl.DataFrame) -> bool:
        """Keep a copy; whether there is one now: a folder that cannot be written is no error."""
        if not self._use:
            return False
        arrow = table.to_arrow()
        try:
            text = json.dumps({**facts, "fingerprint": mark})
        except (TypeError, ValueError):  # a config with a date in it: rare, and only slower
            return False
        arrow = arrow.replace_schema_metadata({_META: text})
        temporary = ""
        try:
            self._folder.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".tmp-")
            with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, arrow.schema) as writer:
                writer.write_table(arrow)
            os.replace(temporary, self._path(source))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return False
        return True

    def _path(self, source: Path) -> Path:
        try:
            name = str(source.relative_to(self._root))
        except ValueError:
            name = str(source)
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.arrow"
