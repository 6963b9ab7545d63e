"""Rows of a data file: what each must look like, told by FILE:LINE. Standard library only.

One place for planning and for the runner: a broken row refuses the command, instead of failing
each cell of a sweep hours later.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from zolab.errors import UserError

#: Larger files are left to the runner: planning stays a matter of seconds.
UP_TO_BYTES = 256 << 20

#: Where the first rows of a file stand, two at most.
_lines: dict[tuple[Any, ...], list[int]] = {}


@dataclass(frozen=True)
class RowForm:
    """What a task uses of a row: fields of its prompt and a label.

    Attributes:
        fields: names of the prompt's fields; each holds a text, a number or true or false.
        label_column: name of the label, an integer from 0.
        num_labels: labels are smaller than this.
    """

    fields: tuple[str, ...]
    label_column: str
    num_labels: int

    def used(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns that the task uses: fields as texts, the label as an integer."""
        texts = {name: str(row[name]) for name in self.fields}
        return {**texts, self.label_column: row[self.label_column]}

    def fault(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row, or None."""
        for name in (*self.fields, self.label_column):
            if name not in row:
                return f"no field {name!r}; the row has {', '.join(sorted(row)) or 'none'}"
            if row[name] is None:
                return f"{name} is null"
        for name in self.fields:
            if not isinstance(row[name], str | int | float):
                return f"{name}: expected a text or a number, got {_KINDS[type(row[name])]}"
            if isinstance(row[name], str) and not _is_unicode(row[name]):
                return f"{name}: not valid Unicode (half a surrogate pair)"
        label = row[self.label_column]
        if not isinstance(label, int) or isinstance(label, bool):
            return f"{self.label_column} = {label!r}: expected an integer"
        if not 0 <= label < self.num_labels:
            return (
                f"{self.label_column} = {label}: outside the task's range 0 to "
                f"{self.num_labels - 1}"
            )
        return None


_KINDS = {list: "a list", dict: "an object"}


def form_of(template: str, label_column: str, num_labels: int) -> RowForm:
    """The form of a classification task's rows.

    Raises:
        ValueError: the template has a brace without its partner.
    """
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return RowForm(tuple(dict.fromkeys(names)), label_column, num_labels)


def read(file: Path, form: RowForm | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each row of a JSON-lines file; empty lines are left out.

    Args:
        file: UTF-8 text, one JSON object a line.
        form: what every row must have; None: any object will do.

    Raises:
        UserError: as `FILE:LINE: what`, or `FILE: what` if it cannot be read or has no rows.
    """
    empty = True
    try:
        with file.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    empty = False
                    yield number, _row(line.rstrip("\r\n"), f"{file}:{number}", form)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read: not UTF-8 ({error.reason})") from error
    if empty:
        raise UserError(f"{file}: no rows")


def look_over(task: dict[str, Any], files: list[Path]) -> None:
    """Check each row of a task's data, and that there is something to train and to select on.

    A file that did not change is looked at once per process and kind of check.

    Args:
        task: checked `task` section of a cell; other kinds than classification are not looked at.
        files: its JSON-lines files, see `zolab.config.contents.split_files`.

    Raises:
        UserError: as `FILE:LINE: what`.
    """
    if task.get("kind") != "classification":
        return
    form = form_of(task["template"], task["label_column"], len(task["label_words"]))
    found: dict[str, list[int]] = {}
    for file in files:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns, form)
        if key not in _lines:
            if stat.st_size > UP_TO_BYTES:
                continue
            _lines[key] = [number for number, _ in read(file, form)][:2]
        found[file.name] = _lines[key]
    train = found.get("train.jsonl", [])
    if len(train) == 1 and "dev.jsonl" not in [file.name for file in files]:
        refuse_lone_row(f"{files[0]}:{train[0]}")


def refuse_lone_row(place: str) -> NoReturn:
    """Without dev.jsonl the dev rows are cut from the training file, so one row is too few."""
    raise UserError(
        f"{place}: the only row; without a dev.jsonl beside it there must be two or more, since "
        "the dev split is cut from them"
    )


def _row(line: str, place: str, form: RowForm | None) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{place}: not usable: brackets are nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{place}: not usable: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(row).__name__}")
    fault = form.fault(row) if form else None
    if fault:
        raise UserError(f"{place}: {fault}")
    return row


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
