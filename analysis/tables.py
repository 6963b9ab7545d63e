"""Tables and how they are written: Markdown, terminal text, CSV."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zolab.tracking.schema import BACKPROP_FORWARDS

#: Printed under every table in which methods are compared by forwards.
FORWARDS_NOTE = (
    "Forwards are forward passes on one mini-batch; one back-propagation step counts "
    f"{BACKPROP_FORWARDS} of them."
)
#: Metrics between 0 and 1 that are printed as percentages.
_SHARES = frozenset({"accuracy", "f1", "exact_match"})
#: Headings of columns of words, beside the first.
_OF_WORDS = frozenset({"method", "method here", "but"})


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    Attributes:
        title: one line.
        headers: names of the columns; the first is a label, numbers are right-aligned.
        rows: cells as text, each of the length of `headers`.
        notes: sentences printed below.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def is_text(self) -> list[bool]:
        """Whether each column holds words, which are left-aligned."""
        return [not i or name in _OF_WORDS for i, name in enumerate(self.headers)]


def metric_name(metric: str) -> str:
    """Heading of a metric with its unit: "accuracy (%)", "loss (nats)"."""
    if metric in _SHARES:
        return f"{metric} (%)"
    return f"{metric} (nats)" if metric == "loss" else metric


def unit(metric: str) -> str:
    """What to write behind a value of the metric: "%" or nothing."""
    return " %" if metric in _SHARES else ""


def scale(metric: str) -> float:
    """What a value of the metric is multiplied by for printing."""
    return 100.0 if metric in _SHARES else 1.0


def level(value: float, metric: str, *, sign: bool = False) -> str:
    """One value of a metric: "80.9", with its sign when it is a difference."""
    digits = 1 if metric in _SHARES else 3
    return f"{value * scale(metric):{'+' if sign else ''}.{digits}f}"


def level_sd(mean: float, sd: float, metric: str) -> str:
    """Mean ± standard deviation; without the latter when there is one seed."""
    if math.isnan(mean):
        return "diverged"
    return level(mean, metric) + ("" if math.isnan(sd) else f" ± {level(sd, metric)}")


def interval(low: float, high: float, metric: str, *, sign: bool = False) -> str:
    """For a cell: "[80.5, 81.3]", or "n < 3" where there is none."""
    if math.isnan(low):
        return "n < 3"
    return f"[{level(low, metric, sign=sign)}, {level(high, metric, sign=sign)}]"


def count(value: float) -> str:
    """A number of steps or forwards: "1,600"."""
    return f"{value:,.0f}"


def rate(lr: float | None) -> str:
    """A learning rate as the field writes it: "2e-4"; a dash for none."""
    if lr is None:
        return "–"
    if not 0 < abs(lr) < 0.01:
        return f"{lr:g}"
    mantissa, _, exponent = f"{lr:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def markdown(table: Table, *, heading: str = "###") -> str:
    """A table as GitHub Markdown; text of the user's cannot leave its cell."""
    lines = [f"{heading} {plain_markdown(table.title)}", ""] if table.title else []
    lines.append("| " + " | ".join(plain_markdown(cell) for cell in table.headers) + " |")
    lines.append("".join("|---" if words else "|---:" for words in table.is_text) + "|")
    lines += ["| " + " | ".join(plain_markdown(cell) for cell in row) + " |" for row in table.rows]
    if table.notes:
        lines += ["", *(f"<sub>{plain_markdown(note)}</sub>  " for note in table.notes)]
    return "\n".join(lines) + "\n"


def plain_markdown(text: str) -> str:
    """One line of text with everything that Markdown or HTML would interpret made harmless."""
    text = (
        " ".join(plain(text).split())
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    # Brackets stay readable: they are a link only with a parenthesis or bracket behind them.
    return re.sub(r"([\\`*|~#]|(?<!\w)_|_(?!\w)|(?<=\])[(\[])", r"\\\1", text)


def text(table: Table) -> str:
    """A table for the terminal: aligned columns, notes indented below; control codes removed."""
    cells = [[plain(cell) for cell in row] for row in [table.headers, *table.rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.headers))]
    lines = [plain(table.title)] if table.title else []
    for number, row in enumerate(cells):
        padded = [
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(row, widths, table.is_text, strict=True)
        ]
        lines.append("  " + "  ".join(padded).rstrip())
        if number == 0:
            lines.append("  " + "  ".join("─" * width for width in widths))
    for note in table.notes:
        lines += textwrap.wrap(plain(note), 100, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """CSV with a header line, `\\n` line ends and floats in their shortest exact form.

    Args:
        rows: records that have every column; None becomes an empty cell, NaN "nan", infinity "inf".
        columns: the columns in order.
    """
    lines = [",".join(columns)]
    lines += [",".join(_csv(row[column]) for column in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _csv(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))  # float(): a numpy float would spell its type
    cell = str(value)
    if any(char in cell for char in ',"\n\r'):
        return '"' + cell.replace('"', '""') + '"'
    return cell
