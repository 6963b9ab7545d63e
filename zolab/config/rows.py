"""Rows of a data file: what each must look like, told by FILE:LINE. Standard library only.

One place for planning and for the runner: a broken row refuses the command, instead of failing
each cell of a sweep hours later.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
    """What a task uses of a row: fields of its prompt, a label, lists of texts.

    Attributes:
        fields: names of the prompt's fields; each holds a text, a number or true or false.
        label_column: name of the label, or None if a row has none.
        num_labels: labels are smaller than this; None if the row itself says how many there are,
            by the length of its first list.
        values: what the label column holds for label 0, 1, ..., as texts; None means the number.
        lists: names of columns with one or more texts each; `answers.text` is `text` in `answers`.
        maps: field or list -> pairs (what the data says, what is meant).
        whole: the task reads whatever it likes: `used` is the row as JSON, under "row".
    """

    fields: tuple[str, ...]
    label_column: str | None
    num_labels: int | None
    values: tuple[str, ...] | None = None
    lists: tuple[str, ...] = ()
    maps: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    whole: bool = False

    def used(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns used: fields as texts of the prompt, the label as an integer, lists."""
        if self.whole:
            return {"row": json.dumps(row, default=str)}
        out: dict[str, Any] = {name: str(row[name]) for name in self.fields}
        for name, pairs in self.maps:
            if name in out:
                out[name] = dict(pairs)[out[name]]
        if self.label_column is not None:
            label = row[self.label_column]
            out[self.label_column] = label if self.values is None else self.values.index(str(label))
        for name in self.lists:
            pairs = self._pairs(name)
            found = _as_list(_inside(row, name))
            out[name] = found if pairs is None else [pairs[str(item)] for item in found]
        return out

    def _pairs(self, name: str) -> dict[str, str] | None:
        return next((dict(pairs) for mapped, pairs in self.maps if mapped == name), None)

    def fault(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row, or None."""
        label = () if self.label_column is None else (self.label_column,)
        for name in (*self.fields, *label, *(name.partition(".")[0] for name in self.lists)):
            if name not in row:
                return f"no field {name!r}; the row has {', '.join(sorted(row)) or 'none'}"
            if row[name] is None:
                return f"{name} is null"
        for name in self.fields:
            if not isinstance(row[name], str | int | float):
                return f"{name}: expected a text or a number, got {_kind(row[name])}"
            if isinstance(row[name], str) and not _is_unicode(row[name]):
                return f"{name}: not valid Unicode (half a surrogate pair)"
        for name, pairs in self.maps:
            if name in self.fields and str(row[name]) not in dict(pairs):
                known = ", ".join(dict(pairs))
                return f"{name} = {row[name]!r}: expected one of {known} (task.maps.{name})"
        return self._lists_fault(row) or self._label_fault(row)

    def _lists_fault(self, row: dict[str, Any]) -> str | None:
        for name in self.lists:
            found, pairs = _inside(row, name), self._pairs(name)
            texts = _as_list(found)
            if pairs is not None:
                odd = [item for item in texts if str(item) not in pairs]
                if odd:
                    known = ", ".join(pairs)
                    return f"{name} = {odd[0]!r}: expected one of {known} (task.maps.{name})"
                continue
            if not all(isinstance(text, str) for text in texts):
                return f"{name}: expected a text or a list of texts, got {str(found)[:40]!r}"
            if not texts:
                return f"{name}: the list is empty"
            if not all(text.strip() and _is_unicode(text) for text in texts):
                return f"{name}: a text in it is empty or not valid Unicode"
        return None

    def _label_fault(self, row: dict[str, Any]) -> str | None:
        if self.label_column is None:
            return None
        label, name = row[self.label_column], self.label_column
        if self.values is not None:
            if str(label) in self.values:
                return None
            return f"{name} = {label!r}: expected one of {', '.join(self.values)}"
        if not isinstance(label, int) or isinstance(label, bool):
            return f"{name} = {label!r}: expected an integer"
        most = self.num_labels or len(_inside(row, self.lists[0]))
        if not 0 <= label < most:
            return f"{name} = {label}: outside the task's range 0 to {most - 1}"
        return None


def _as_list(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list) else [found]


def _inside(row: dict[str, Any], name: str) -> Any:
    """`row["answers"]["text"]` for `answers.text`; None where a part is missing."""
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object"}.get(type(value), f"a {type(value).__name__}")


def read(file: Path, form: RowForm | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each row of a data file; empty lines are left out.

    Args:
        file: UTF-8 text: JSON lines, one object a line, or a table with a header line whose values
            are parted by commas (.csv) or tabs (.tsv).
        form: what every row must have; None: any object will do.

    Raises:
        UserError: as `FILE:LINE: what`, or `FILE: what` if it cannot be read or has no rows.
    """
    rows = _READERS[file.suffix]
    empty = True
    try:
        encoding, newline = ("utf-8", "\n") if file.suffix == ".jsonl" else ("utf-8-sig", "")
        with file.open(encoding=encoding, newline=newline) as stream:
            for number, row in rows(stream, file, form):
                empty = False
                fault = form.fault(row) if form else None
                if fault:
                    raise UserError(f"{file}:{number}: {fault}")
                yield number, row
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read: not UTF-8 ({error.reason})") from error
    if empty:
        raise UserError(f"{file}: no rows")


def _read_json(
    stream: Iterable[str], file: Path, form: RowForm | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield number, _row(line.rstrip("\r\n"), f"{file}:{number}")


def _read_table(
    stream: Iterable[str], file: Path, form: RowForm | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Values are texts; a label that is written as a number is one."""
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.DictReader(stream, strict=True, **(tabs if file.suffix == ".tsv" else {}))
    label = form.label_column if form and form.values is None else None
    try:
        for row in reader:
            if None in row:
                count = len(reader.fieldnames or ())
                raise UserError(f"{file}:{reader.line_num}: more values than the {count} columns")
            text = row.get(label) if label else None
            if text is not None and _INTEGER.fullmatch(text.strip()):
                row[label] = int(text)
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num + 1}: {error}") from None


#: Ending of a data file's name -> how its rows are read.
_READERS = {".jsonl": _read_json, ".csv": _read_table, ".tsv": _read_table}
_INTEGER = re.compile(r"[+-]?\d{1,18}")
SUFFIXES = tuple(_READERS)


def look_over(form: RowForm, files: Sequence[Path]) -> None:
    """Check each row of a task's data, and that there is something to train and to select on.

    A file that did not change is looked at once per process and kind of check.

    Args:
        form: what the task uses of a row, see `zolab.config.forms`.
        files: its data files, see `zolab.config.contents.split_files`.

    Raises:
        UserError: as `FILE:LINE: what`.
    """
    found: dict[str, list[int]] = {}
    for file in files:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns, form)
        if key not in _lines:
            if stat.st_size > UP_TO_BYTES:
                continue
            _lines[key] = [number for number, _ in read(file, form)][:2]
        found[file.stem] = _lines[key]
    train = found.get("train", [])
    if len(train) == 1 and "dev" not in [file.stem for file in files]:
        refuse_lone_row(f"{files[0]}:{train[0]}")


def refuse_lone_row(place: str) -> NoReturn:
    """Without dev.jsonl the dev rows are cut from the training file, so one row is too few."""
    raise UserError(
        f"{place}: the only row; without a dev.jsonl beside it there must be two or more, since "
        "the dev split is cut from them"
    )


def _row(line: str, place: str) -> dict[str, Any]:
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
    return row


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
