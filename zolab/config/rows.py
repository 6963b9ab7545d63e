"""A look at every row of a cell's data while it is planned. Standard library only.

The runner checks the rows it uses in the same words, but it needs torch and runs after a sweep was
queued: one broken row would fail each cell hours later instead of refusing the command.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from zolab.errors import UserError

#: Larger files are left to the runner: planning stays a matter of seconds.
UP_TO_BYTES = 256 << 20

_seen: set[tuple[Any, ...]] = set()


def look_over(task: dict[str, Any], files: list[Path]) -> None:
    """Check that each row is a JSON object with the fields and a label the task can use.

    A file that did not change is looked at once per process and kind of check.

    Args:
        task: checked `task` section of a cell; other kinds than classification are not looked at.
        files: JSON-lines files.

    Raises:
        UserError: as `FILE:LINE: what`.
    """
    if task.get("kind") != "classification":
        return
    names = [name for _, name, _, _ in string.Formatter().parse(task["template"]) if name]
    columns = (*dict.fromkeys(names), task["label_column"])
    num_labels = len(task["label_words"])
    for file in files:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns, columns, num_labels)
        if key in _seen or stat.st_size > UP_TO_BYTES:
            continue
        _check_file(file, columns, num_labels)
        _seen.add(key)


def _check_file(file: Path, columns: tuple[str, ...], num_labels: int) -> None:
    num_rows = 0
    try:
        with file.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    num_rows += 1
                    fault = _fault(line, columns, num_labels)
                    if fault:
                        raise UserError(f"{file}:{number}: {fault}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if not num_rows:
        raise UserError(f"{file}: no rows")


def _fault(line: str, columns: tuple[str, ...], num_labels: int) -> str | None:
    """What is wrong with a row, or None."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    if not isinstance(row, dict):
        return f"expected a JSON object, got {type(row).__name__}"
    missing = [name for name in columns if name not in row]
    if missing:
        return f"no field {missing[0]!r}; the row has {', '.join(sorted(row))}"
    label_column = columns[-1]
    label = row[label_column]
    if not isinstance(label, int) or isinstance(label, bool):
        return f"{label_column} = {label!r}: expected an integer"
    if not 0 <= label < num_labels:
        return f"{label_column} = {label}: outside the task's range 0 to {num_labels - 1}"
    return None
