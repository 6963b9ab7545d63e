"""Health of zeroth-order runs, recomputed from their logs: see `zolab.tracking.health`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from analysis.methods import Group
from analysis.runs import Runs
from analysis.tables import Table
from zolab.tracking.health import COLUMNS as LOGGED
from zolab.tracking.health import Health, assess

COLUMNS = (
    "run_id", "model", "task", "optimizer", "sparsity", "lr", "eps", "seed", "state", "num_rows",
    "zero_share", "signal", "loss_noise", "signal_to_noise", "signal_steps", "eps_rounding",
    "step_rounding", "moved_share", "change", "change_error", "diverged", "advice_lr",
    "advice_eps", "warnings",
)  # fmt: skip
_MAX_ROWS = 2000


def health_of(
    log: pl.DataFrame, eps: float | None, dtype: str, max_rows: int = _MAX_ROWS
) -> Health:
    """Health of one run.

    Args:
        log: its rows, see `reading.log.RunLog.table`.
        eps: perturbation scale, None when unknown.
        dtype: format of its weights, e.g. "bfloat16".
        max_rows: of a longer log evenly spaced rows are looked at, the last one among them.
    """
    thin = max(1, -(-log.height // max_rows))
    first = (log.height - 1) % thin if log.height else 0
    # Column by column: a query over the table costs a walk through polars' threads.
    kept = {
        name: log[name].gather_every(thin, first).to_list()
        for name in LOGGED
        if name in log.columns
    }
    return assess(kept, eps=eps, dtype=dtype)


def run_health(runs: Runs) -> dict[str, Health]:
    """Health of every zeroth-order run that logged a training row, by run_id."""
    found = {}
    for row in runs.runs.iter_rows(named=True):
        log = runs.logs[row["run_id"]]
        if any(name.startswith("zo/") for name in log.columns):
            dtype = row.get("config.model.dtype") or "float32"
            health = health_of(log, eps_of(row), dtype)
            if health.num_rows:
                found[row["run_id"]] = health
    return found


def eps_of(row: dict[str, Any]) -> float | None:
    """Perturbation scale of a row of `Runs.runs`, None where it has none."""
    try:
        return float(row.get("config.optimizer.eps") or "")
    except ValueError:
        return None


def csv_rows(runs: Runs) -> list[dict[str, Any]]:
    """One record per zeroth-order run (see `COLUMNS`)."""
    about = {row["run_id"]: row for row in runs.runs.iter_rows(named=True)}
    rows = []
    for run_id, health in run_health(runs).items():
        row = about[run_id]
        facts = {name: value for name, value in vars(health).items() if name in COLUMNS}
        record = {name: row[name] for name in COLUMNS if name in row} | facts
        record |= {"eps": eps_of(row), "advice_lr": health.lr, "advice_eps": health.eps}
        rows.append(record | {"lr": row["lr"], "warnings": "; ".join(health.warnings)})
    return rows


def health_table(runs: Runs, groups: Sequence[Group]) -> Table | None:
    """Medians over a method's finished seeds, with what the runs were warned of."""
    health = run_health(runs)
    rows = []
    for group in groups:
        for method in group.trained:
            own = [health[c.run_id] for c in method.done if c.run_id in health]
            if not own:
                continue
            where = f"{group.model}, {group.task}, " if len(groups) > 1 else ""
            diverged = sum(h.diverged for h in own)
            rows.append(
                [
                    where + method.label,
                    _median([h.zero_share for h in own], ".1%"),
                    _median([h.signal for h in own], ".2g"),
                    _median([h.signal_to_noise for h in own], ".2f"),
                    _median([h.eps_rounding for h in own], ".3g"),
                    _median([h.moved_share for h in own], ".0%"),
                    f"{diverged} of {len(own)}",
                    _advice(own),
                ]
            )
    if not rows:
        return None
    notes = [
        "Medians over finished seeds, recomputed from the logs. Zero: share of coefficients that "
        "were exactly 0. |L+ − L−|: nats, and over the spread of the training loss from batch to "
        "batch. eps / rounding: rounding steps of the stored format by which eps moves a weight "
        "of root-mean-square size. Moved: share of a sample of weights that are not what the run "
        "began with. Advice: direction for lr and eps that most seeds point to; sentences are in "
        "health.csv."
    ]
    headers = ["method", "zero", "|L+ − L−|", "over batch noise", "eps / rounding", "moved",
               "diverged", "advice"]  # fmt: skip
    return Table("Health of the zeroth-order runs", headers, rows, notes)


def _median(values: Sequence[float | None], form: str) -> str:
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    if not known:
        return "–"
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return format(middle, form)


def _advice(own: Sequence[Health]) -> str:
    said = []
    for name in ("lr", "eps"):
        for way in ("down", "up"):
            if 2 * sum(getattr(h, name) == way for h in own) > len(own):
                said.append(f"{name} {way}")
    return ", ".join(said) or "–"
