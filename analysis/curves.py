"""What the evaluations of one run say, picked out of its log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.runs import Runs
from analysis.stats import Array
from zolab.tracking.schema import AXES

#: Parts of a step that a run may log as `perf/<part>_seconds`, in the order of a table.
PHASES = ("data", "transfer", "perturb", "forward", "update", "evaluation")


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
        run_id: the run.
        seed: its seed.
        done: whether it has its final row.
        costs: axis name of `schema.AXES` to the cost at each evaluation, shape (num_evals,); an
            axis that was not logged is missing.
        dev: dev key to its value at each evaluation, shape (num_evals,), NaN where not logged.
        test: test key to its value, empty unless done.
        perf: time and memory of the run: "step_seconds" and each part of a step that was logged
            ("forward_seconds", …, see `PHASES`; medians over the logged rows), "woven_seconds" (the
            part of the forwards that is one of the others), "forward_share" (not with
            back-propagation, whose two passes are timed as one), "train_seconds", "peak_bytes",
            "base_bytes", "num_params" (weights of the model); what was not logged is missing.
    """

    run_id: str
    seed: int
    done: bool
    costs: dict[str, Array]
    dev: dict[str, Array]
    test: dict[str, float]
    perf: dict[str, float]


def curves_of(runs: Runs) -> dict[str, Curve]:
    """Every run that logged a row, by run_id."""
    about = {row["run_id"]: row for row in runs.runs.iter_rows(named=True)}
    return {
        run_id: _curve(table, run_id, about[run_id]["seed"], about[run_id]["state"] == "done")
        for run_id, table in runs.logs.items()
        if table.height
    }


def _curve(table: pl.DataFrame, run_id: str, seed: int, done: bool) -> Curve:
    dev = [name for name in table.columns if name.startswith("dev/")]
    test = [name for name in table.columns if name.startswith("test/")]
    axes = [
        name for name in AXES if name in table.columns and name != "step" and _top(table[name]) > 0
    ]
    # An evaluation row that did not log a cost has the cost of the last row before it.
    evals = table.lazy().select(
        "step", *(pl.col(name).forward_fill().fill_null(0.0) for name in axes), *dev
    )
    evals = evals.filter(pl.any_horizontal(pl.col(dev).is_not_null())) if dev else evals.head(0)
    rows = evals.collect()
    return Curve(
        run_id=run_id,
        seed=seed,
        done=done,
        costs={name: _floats(rows[name]) for name in ("step", *axes)},
        dev={name: _floats(rows[name]) for name in dev},
        test={name: float(table[name].drop_nulls()[-1]) for name in test},
        perf=_perf(table),
    )


def _top(column: pl.Series) -> float:
    return float(np.nan_to_num(column.max() or 0.0))


def _floats(column: pl.Series) -> Array:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _perf(rows: pl.DataFrame) -> dict[str, float]:
    """Time and memory of one run."""
    perf: dict[str, float | None] = {}
    columns = set(rows.columns)
    for name in ("step", "woven", *PHASES):
        if f"perf/{name}_seconds" in columns:
            # The median over rows: the first rows of an attempt include warming up.
            perf[f"{name}_seconds"] = rows[f"perf/{name}_seconds"].median()
    zeroth_order = any(name.startswith("zo/") for name in columns)
    if zeroth_order and {"perf/step_seconds", "perf/forward_seconds"} <= columns:
        both = rows.drop_nulls(["perf/step_seconds", "perf/forward_seconds"])
        perf["forward_share"] = (both["perf/forward_seconds"] / both["perf/step_seconds"]).median()
    for column in ("train_seconds", "perf/peak_bytes", "perf/base_bytes", "model/num_params"):
        if column in columns:
            perf[column.rpartition("/")[2]] = rows[column].max()
    return {name: float(value) for name, value in perf.items() if value is not None}
