"""What every reader returns for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl


class Unreadable(Exception):
    """A run that must be left out; the message says why."""


@dataclass
class RunLog:
    """One run as logged.

    Attributes:
        run_id: its id.
        config: the resolved config.
        table: a row per logged step: `step` (Int64, increasing) and a Float64 column per key in
            alphabetical order; null where the key was not logged, NaN where NaN was.
        reported: what the source itself says about the end of the run.
        schema: version of the log schema, None when the source does not say.
        notes: sentences about what was skipped or damaged.
    """

    run_id: str
    config: dict[str, Any]
    table: pl.DataFrame
    reported: str = ""
    schema: int | None = None
    notes: list[str] = field(default_factory=list)


#: Told once for every log that has been read: (done, of how many).
Watch = Callable[[int, int], None]

EMPTY = pl.DataFrame(schema={"step": pl.Int64})


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Rows by step and columns by name; of rows with the same step the last one is kept whole."""
    if "step" not in table.columns:
        return EMPTY
    steps = table["step"].to_numpy()
    # Numpy and plain columns where they do: each query of polars costs a walk through its threads,
    # and there are thousands of small logs.
    if not (steps[1:] > steps[:-1]).all():
        table = table.sort("step", maintain_order=True)
        table = table.unique(subset="step", keep="last", maintain_order=True)
    logged = [name for name in table.columns if name != "step" and table[name].count()]
    return pl.DataFrame([table[name] for name in ("step", *sorted(logged))])


def from_columns(
    steps: np.ndarray, columns: Mapping[str, np.ndarray], logged: Mapping[str, np.ndarray]
) -> pl.DataFrame:
    """A table from numpy columns.

    Args:
        steps: shape (n,), int64.
        columns: key to shape (n,), float64.
        logged: key to shape (n,), bool; false makes a null.
    """
    series = [pl.Series("step", steps, dtype=pl.Int64)]
    for key, values in columns.items():
        there = logged[key]
        column = pl.Series(key, values, dtype=pl.Float64)
        if not there.all():
            column = column.set(pl.Series(~there), None)
        series.append(column)
    return pl.DataFrame(series)


def from_rows(pairs: Sequence[tuple[int, Mapping[str, Any]]]) -> pl.DataFrame:
    """A table from (step, {key: number}); values that are no numbers are left out."""
    columns: dict[str, np.ndarray] = {}
    logged: dict[str, np.ndarray] = {}
    for i, (_, row) in enumerate(pairs):
        for key, value in row.items():
            if isinstance(value, (int, float)):
                if key not in columns:
                    columns[key] = np.zeros(len(pairs))
                    logged[key] = np.zeros(len(pairs), dtype=bool)
                columns[key][i], logged[key][i] = _float(value), True
    steps = np.fromiter((step for step, _ in pairs), np.int64, len(pairs))
    return from_columns(steps, columns, logged)


def _float(value: float) -> float:
    """The nearest float; integers beyond all floats become infinite, as in `.wandb` files."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
