"""What a report consists of: which tables in which order, and the CSVs behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import across, convergence, cost, health, reproduction, speedup, tables
from analysis.methods import Group
from analysis.runs import Runs
from analysis.tables import Table


@dataclass(frozen=True)
class Contents:
    """Everything a report says, before it is written in some form.

    Attributes:
        groups: models × tasks.
        mains: one table per group, the one a reader sees first.
        details: per group the other tables.
        overall: tables over several groups.
        notes: sentences about what was skipped, damaged or could not be computed.
    """

    groups: tuple[Group, ...]
    mains: tuple[Table, ...]
    details: tuple[tuple[Table, ...], ...]
    overall: tuple[Table, ...]
    notes: tuple[str, ...]


def contents(groups: Sequence[Group], runs: Runs, notes: Sequence[str]) -> Contents:
    """Compute every table.

    Args:
        groups: from `methods.group_runs`.
        runs: what the groups were made of.
        notes: sentences so far.
    """
    per_group: tuple[Callable[[Group], Table | None], ...] = (
        speedup.speedup_table,
        convergence.budget_table,
        across.paired_table,
        across.sparsity_table,
        cost.cost_table,
        cost.phase_table,
        convergence.rate_table,
        reproduction.reproduction_table,
    )
    sets = across.task_sets(groups)
    overall: list[Table | None] = []
    for tasks in sets:
        overall += [across.task_table(tasks), across.profile_table(tasks)]
    overall += [cost.memory_table(groups), health.health_table(runs, groups)]
    return Contents(
        tuple(groups),
        tuple(convergence.main_table(group) for group in groups),
        tuple(_present(make(group) for make in per_group) for group in groups),
        _present(overall),
        tuple(notes),
    )


def _present(found: Any) -> tuple[Table, ...]:
    return tuple(table for table in found if table is not None)


def csv_files(groups: Sequence[Group], runs: Runs) -> dict[str, str]:
    """File name to CSV text; each record ends in the ids of the runs behind it."""
    sets = across.task_sets(groups)
    parts: dict[str, tuple[list[dict[str, Any]], Sequence[str]]] = {
        "convergence.csv": (convergence.csv_rows(groups), convergence.COLUMNS),
        "speedup.csv": (speedup.csv_rows(groups), speedup.COLUMNS),
        "time_memory.csv": (cost.csv_rows(groups), cost.COLUMNS),
        "paired.csv": (across.paired_rows(groups), across.PAIRED_COLUMNS),
        "sparsity.csv": (across.sparsity_rows(groups), across.SPARSITY_COLUMNS),
        "tasks.csv": (across.task_rows(sets), across.TASK_COLUMNS),
        "reproduction.csv": (reproduction.csv_rows(groups), reproduction.COLUMNS),
        "health.csv": (health.csv_rows(runs), health.COLUMNS),
    }
    return {name: tables.csv_text(rows, columns) for name, (rows, columns) in parts.items()}
