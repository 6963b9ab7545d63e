"""From logs to a folder with the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import SOURCE_NAMES, figures, latex, plots, speedup, tables
from analysis.contents import Contents, contents, csv_files
from analysis.methods import Group, group_runs
from analysis.page import page
from analysis.reading.log import Watch
from analysis.runs import Runs, read
from analysis.targets import FINAL, Target
from zolab.errors import UserError


@dataclass(frozen=True)
class ReportResult:
    """What `build` wrote.

    Attributes:
        paths: file name to path, in the order in which a reader wants them.
        text: the main tables for the terminal, ending in the paths.
        notes: sentences about what was skipped, damaged or could not be computed.
        contents: every table.
    """

    paths: dict[str, Path]
    text: str
    notes: tuple[str, ...]
    contents: Contents


def build(
    runs: Path | str,
    out: Path,
    *,
    source: str = "local",
    baseline: str | None = None,
    target: Target = FINAL,
    metric: str | None = None,
    watch: Watch | None = None,
) -> ReportResult:
    """Read the runs and write the report: Markdown, LaTeX, CSVs, figures and a page.

    The same logs give the same bytes, whatever the source.

    Args:
        runs: folder of run folders; for "online" a wandb project.
        out: folder for the report, made if missing; files of an earlier report are replaced.
        source: "local", "wandb" (the offline `.wandb` files alone) or "online".
        baseline: label of the method to compare with; None means "mezo" where it was run.
        target: rule for the level of time-to-target tables.
        metric: see `methods.group_runs`.
        watch: told of every log that has been read.

    Raises:
        UserError: no run, no finished run, an unknown source, baseline or metric, or `out` cannot
            be written. Nothing is written then.
    """
    logs = read(runs, source, watch=watch)
    groups, notes = group_runs(logs, baseline, target, metric)
    report = contents(groups, logs, [*logs.notes, *notes, *_without_target(groups)])
    colour = plots.colours(groups)
    drawn = figures.static_figures(groups, colour)
    csvs = csv_files(groups, logs)
    texts = {
        "report.md": _markdown(report, logs, list(drawn), list(csvs)),
        "index.html": page(report, logs, colour),
        **csvs,
        "tables.tex": latex.tables_file(_in_order(report)),
        "report.tex": latex.DOCUMENT,
    }
    files = {name: text.encode() for name, text in texts.items()} | drawn
    paths = {name: out / name for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(paths[name], content)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror})") from error
    return ReportResult(paths, _terminal(report, logs, out), report.notes, report)


def _in_order(report: Contents) -> list[tables.Table]:
    """Every table, groups first."""
    parts = zip(report.mains, report.details, strict=True)
    return [table for main, rest in parts for table in (main, *rest)] + list(report.overall)


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


def _markdown(report: Contents, logs: Runs, drawn: Sequence[str], csvs: Sequence[str]) -> str:
    """`report.md`: the main tables and the figure first, then everything behind them."""
    parts = ["# zolab report\n"]
    parts += [tables.markdown(table, heading="##") for table in report.mains]
    pictures = {
        "convergence.svg": "Dev metric over forward passes",
        "speedup.svg": "Speedup over the baseline",
        "sparsity.svg": "Test metric over the share of weights frozen",
        "profile.svg": "Share of tasks within a factor of the quickest method",
    }
    shown = [f"![{title}]({name})\n" for name, title in pictures.items() if name in drawn]
    parts += shown[:1]
    for group, details in zip(report.groups, report.details, strict=True):
        if len(report.groups) > 1:
            parts.append(f"## More on {tables.plain_markdown(f'{group.model}, {group.task}')}\n")
        parts += [tables.markdown(table) for table in details]
    parts += [tables.markdown(table) for table in report.overall] + shown[1:]
    done = int((logs.runs["state"] == "done").sum())
    links = ", ".join(f"[{name}]({name})" for name in csvs)
    parts.append(
        f"{done} finished of {logs.runs.height} runs. The numbers behind every cell, with the ids "
        f"of their runs: {links}; for papers: [tables.tex](tables.tex) and the figures as PDF; "
        "interactive: [index.html](index.html).\n"
    )
    if report.notes:
        parts.append("### What was skipped or damaged\n")
        parts.append("".join(f"- {tables.plain_markdown(note)}\n" for note in report.notes))
    return "\n".join(parts)


def _terminal(report: Contents, logs: Runs, out: Path) -> str:
    """Main and speedup tables, notes, where it lies."""
    parts = []
    for group, main in zip(report.groups, report.mains, strict=True):
        for table in (main, speedup.speedup_table(group)):
            if table is not None:
                parts.append(tables.text(table))
    notes = [*report.notes, *_endings(logs)]
    if notes:
        shown = [*notes[:10], *([f"and {len(notes) - 10} more, see report.md"] * (len(notes) > 10))]
        parts.append("".join(f"note: {tables.plain(note)}\n" for note in shown))
    parts.append(
        f"read from {SOURCE_NAMES[logs.source]}; page: {out / 'index.html'}, tables: "
        f"{out / 'report.md'} and {out / 'tables.tex'}, CSVs and figures beside them\n"
    )
    return "\n".join(parts)


def _endings(logs: Runs) -> list[str]:
    """How unfinished runs ended. Only for the terminal: it differs between the sources."""
    table = logs.runs.filter((logs.runs["state"] != "done") & (logs.runs["reported"] != ""))
    return [f"run {row['run_id']}: {row['reported']}" for row in table.iter_rows(named=True)]
