"""Append-only JSON lines that survive being cut off at any byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zolab.errors import UserError

#: Made once: json.dumps makes a new one at each call that is not with its defaults.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class JsonLines:
    """One file of JSON objects, each in the kernel's hands before `write` returns.

    Opening cuts off a torn last line, so that what is appended stays readable.

    Args:
        path: the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the run
        self._file.truncate(whole_length(path))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row.

        Raises:
            UserError: the disk is full; earlier rows stay readable.
        """
        self.write_line(_encode(row))

    def write_line(self, text: str) -> None:
        """Append one row that is JSON already; UserError as `write`."""
        line = text.encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError("disk full: only part of a row could be written")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write a row ({error}); free some space and run the same "
                "command again"
            ) from error

    def close(self) -> None:
        self._file.close()


def whole_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    data = path.read_bytes() if path.exists() else b""
    return data.rfind(b"\n") + 1


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file; a torn last line is left out, a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes()[: whole_length(path)].splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a block of zeros after a crash of the machine: nothing after it is trusted
    return rows
