"""From a folder of runs to a folder with the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import SOURCE_NAMES, convergence, cost, plots, speedup, tables
from analysis.methods import Group, group_runs
from analysis.page import page
from analysis.runs import Runs, read
from zolab.errors import UserError


@dataclass(frozen=True)
class ReportResult:
    """What `build` wrote.

    Attributes:
        paths: file name to path, in the order in which a reader wants them.
        text: the main tables for the terminal, ending in the paths.
        notes: sentences about what was skipped, damaged or could not be computed.
    """

    paths: dict[str, Path]
    text: str
    notes: tuple[str, ...]


def build(
    runs: Path | str, out: Path, *, source: str = "local", baseline: str | None = None
) -> ReportResult:
    """Read the runs and write `report.md`, the CSVs, `index.html` and the static figure.

    The same logs give the same bytes, and the CSVs do not depend on `source`.

    Args:
        runs: folder of run folders; for "online" a wandb project.
        out: folder for the report, made if missing; files of an earlier report are replaced.
        source: "local", "wandb" (the offline `.wandb` files alone) or "online".
        baseline: label of the method to compare with; None means "mezo" where it was run.

    Raises:
        UserError: no run, no finished run, an unknown source or baseline, or `out` cannot be
            written. Nothing is written then.
    """
    logs = read(runs, source)
    groups, notes = group_runs(logs, baseline)
    notes = [*logs.notes, *notes, *_without_target(groups)]
    colour = plots.colours(groups)
    figures = plots.static_figures(groups, colour)
    files: dict[str, bytes] = {
        "report.md": _markdown(groups, logs, notes, "convergence.svg" in figures).encode(),
        "index.html": page(groups, logs, notes, colour).encode(),
        "convergence.csv": tables.csv_text(
            convergence.csv_rows(groups), convergence.COLUMNS
        ).encode(),
        "speedup.csv": tables.csv_text(speedup.csv_rows(groups), speedup.COLUMNS).encode(),
        "time_memory.csv": tables.csv_text(cost.csv_rows(groups), cost.COLUMNS).encode(),
        **figures,
    }
    paths = {name: out / name for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(paths[name], content)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror})") from error
    return ReportResult(paths, _terminal(groups, notes, paths), tuple(notes))


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one go, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _without_target(groups: Sequence[Group]) -> list[str]:
    return [
        f"{group.model} on {group.task}: {group.baseline.label} ended at no finite level, so no "
        "speedup"
        for group in groups
        if group.baseline is not None and speedup.target_level(group) is None
    ]


def _markdown(groups: Sequence[Group], logs: Runs, notes: Sequence[str], picture: bool) -> str:
    """`report.md`: the main tables and the figure first, then everything behind them."""
    parts = ["# zolab report\n"]
    parts += [tables.markdown(convergence.main_table(group), heading="##") for group in groups]
    if picture:
        parts.append("![Dev metric over forward passes](convergence.svg)\n")
    for group in groups:
        if len(groups) > 1:
            parts.append(f"## More on {tables.plain_markdown(f'{group.model}, {group.task}')}\n")
        for table in (
            speedup.speedup_table(group),
            convergence.budget_table(group),
            cost.cost_table(group),
            convergence.rate_table(group),
        ):
            if table is not None:
                parts.append(tables.markdown(table))
    done = int((logs.runs["state"] == "done").sum())
    read_from = SOURCE_NAMES[logs.source]
    parts.append(
        f"Read from {read_from}: {done} finished of {logs.runs.height} runs. The numbers behind "
        "every cell, with the ids of their runs: [convergence.csv](convergence.csv), "
        "[speedup.csv](speedup.csv), [time_memory.csv](time_memory.csv); interactive: "
        "[index.html](index.html).\n"
    )
    if notes:
        parts.append("### What was skipped or damaged\n")
        parts.append("".join(f"- {tables.plain_markdown(note)}\n" for note in notes))
    return "\n".join(parts)


def _terminal(groups: Sequence[Group], notes: Sequence[str], paths: dict[str, Path]) -> str:
    """Main and speedup tables, notes, paths."""
    parts = []
    for group in groups:
        for table in (convergence.main_table(group), speedup.speedup_table(group)):
            if table is not None:
                parts.append(tables.text(table))
    if notes:
        shown = [*notes[:10], *([f"and {len(notes) - 10} more, see report.md"] * (len(notes) > 10))]
        parts.append("".join(f"note: {tables.plain(note)}\n" for note in shown))
    parts.append("".join(f"{name:<16} {path}\n" for name, path in paths.items()))
    return "\n".join(parts)
