"""One self-contained `index.html`: tables, interactive figures, the list of runs.

All text that comes from a log or a config is escaped on its way in; figures travel as JSON that
cannot close its script element. The same logs give the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import plotly.graph_objects as go
import plotly.offline

from analysis import plots
from analysis.contents import Contents
from analysis.methods import Group
from analysis.runs import Runs
from analysis.tables import Table, rate

#: Config keys that say where a run was, not what it was.
_WHERE = ("run_root", "tracking", "launcher", "sweep")


def page(
    report: Contents,
    runs: Runs,
    colour: dict[str, str],
    grid: tuple[str, str, str] | None = None,
) -> str:
    """The whole page.

    Args:
        report: what to show.
        runs: all runs, for the list at the end.
        colour: colour of each method label.
        grid: (style, data, script) of a grid of all runs to stand first; None for none.
    """
    groups = report.groups
    blocks = [] if grid is None else [_GRID.format(style=grid[0], data=grid[1], script=grid[2])]
    for number, group in enumerate(groups):
        if len(groups) > 1:
            heading = _text(f"{group.model} on {group.task}")
            blocks.append(f'<h2 id="g{number}">{heading}</h2>')
        blocks.append(_group(number, group, report.mains[number], report.details[number], colour))
    if report.overall:
        blocks.append('<h2 id="all">Over all of them</h2>')
        blocks += [_card(_heading(table) + _table(table, colour, {})) for table in report.overall]
    done = int((runs.runs["state"] == "done").sum())
    title = ", ".join(f"{group.model} on {group.task}" for group in groups[:3]) or "runs"
    title += ", …" if len(groups) > 3 else ""
    links = "".join(
        f'<a href="#g{i}">{_text(f"{group.model} on {group.task}")}</a>'
        for i, group in enumerate(groups)
    )
    return _PAGE.format(
        title=_text(f"zolab report: {title}"),
        css=_asset("page.css"),
        heading=_text(title),
        sub=f"{done} finished of {runs.runs.height} runs",
        nav=f'<nav>{links}<a href="#all">all</a><a href="#runs">runs</a></nav>'
        if len(groups) > 1
        else "",
        body="\n".join(blocks),
        notes=_notes(report.notes),
        runs=_run_list(runs),
        plotly=plotly.offline.get_plotlyjs(),
        js=_asset("page.js"),
    )


def _group(
    number: int, group: Group, main: Table, details: Sequence[Table], colour: dict[str, str]
) -> str:
    """Everything about one model on one task; figures stand before the table they draw."""
    marks = {method.label: "flat" for method in group.methods if method.zero_shot}
    if group.baseline is not None:
        marks[group.baseline.label] = "base"
    parts = [_card(_table(main, colour, marks))]
    figures = plots.convergence_figures(group, colour)
    if figures:
        parts.append(_figure_card(f"fig{number}c", "Convergence on dev", figures))
    bars = plots.speedup_figure(group, colour)
    if bars is not None:
        parts.append(_figure_card(f"fig{number}s", "Speedup to the same level", [("", bars)]))
    parts += [_card(_heading(table) + _table(table, colour, marks)) for table in details]
    return "\n".join(parts)


def _text(text: str) -> str:
    return html.escape(text)


def _asset(name: str) -> str:
    return resources.files("analysis").joinpath(name).read_text(encoding="utf-8")


def _card(body: str) -> str:
    return f'<section class="card">{body}</section>'


def _heading(table: Table) -> str:
    return f"<h3>{_text(table.title)}</h3>"


def _table(table: Table, colour: dict[str, str], marks: dict[str, str]) -> str:
    kinds = [' class="left"' if words and i else "" for i, words in enumerate(table.is_text)]
    head = "".join(
        f"<th{kind}>{_text(cell)}</th>" for kind, cell in zip(kinds, table.headers, strict=True)
    )
    rows = []
    for row in table.rows:
        ink = colour.get(row[0])
        swatch = f'<span class="swatch" style="background:{ink}"></span>' if ink else ""
        cells = f"<td>{swatch}{_text(row[0])}</td>"
        cells += "".join(
            f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)
        )
        rows.append(f'<tr class="{marks.get(row[0], "")}">{cells}</tr>')
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _cell(text: str) -> str:
    """A cell; an interval behind its value goes below it, so that wide tables stay on screen."""
    value, bracket, rest = text.partition(" [")
    return f"{_text(value)}<small>[{_text(rest)}</small>" if bracket else _text(text)


def _figure_card(name: str, title: str, figures: Sequence[tuple[str, go.Figure]]) -> str:
    """A card with one figure, or several behind buttons; drawn by page.js."""
    data = "[" + ",".join(_json(figure) for _, figure in figures) + "]"
    buttons = "".join(
        f'<button type="button" aria-pressed="false">{_text(tab)}</button>' for tab, _ in figures
    )
    tabs = f'<div class="tabs" role="group">{buttons}</div>' if len(figures) > 1 else ""
    return (
        f'<section class="card" data-figures="{name}"><h3>{_text(title)}</h3>{tabs}'
        f'<div class="plot" id="{name}-plot"></div>'
        f'<script type="application/json" id="{name}">{data}</script></section>'
    )


def _json(figure: go.Figure) -> str:
    """A figure as JSON in which no `<` is left to end the script element."""
    text = json.dumps(figure.to_plotly_json(), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _run_list(runs: Runs) -> str:
    """All runs, with the config keys in which they differ behind a fold."""
    table = runs.runs
    keys = [
        name
        for name in table.columns
        if name.startswith("config.")
        and name[7:].partition(".")[0] not in _WHERE
        and table[name].n_unique() > 1
    ]
    test = {
        (run_id, key): float(log[key].drop_nulls()[-1])
        for run_id, log in runs.logs.items()
        for key in log.columns
        if key.startswith("test/")
    }
    headers = ("run", "method", "seed", "state", "step", "test", "config that differs")
    head = "".join(f'<th class="left">{text}</th>' for text in headers)
    rows = "".join(_run_row(row, keys, test) for row in table.iter_rows(named=True))
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _run_row(row: dict[str, Any], keys: Sequence[str], test: dict[tuple[str, str], float]) -> str:
    method = row["optimizer"]
    if row["sparsity"] != "none":
        method += f" + {row['sparsity']} {row['sparsity_share']:g}"
    value = test.get((row["run_id"], "test/accuracy"), test.get((row["run_id"], "test/loss")))
    shown = "–" if value is None else f"{value:.4f}"
    step = "–" if row["last_step"] is None else f"{row['last_step']:,}"
    state = row["state"]
    differing = [f"{key[7:]} = {row[key]}" for key in keys if row[key] is not None]
    lr = "" if row["lr"] is None else f"lr {rate(row['lr'])}, "
    config = "<br>".join(f"<code>{_text(line)}</code>" for line in differing)
    fold = f"<details><summary>{lr}{len(differing)} keys</summary>{config}</details>"
    cells = (
        f"<td><code>{_text(row['run_id'])}</code></td>",
        f'<td class="left">{_text(method)}</td>',
        f'<td class="left">{row["seed"]}</td>',
        f'<td class="left wrap"><span class="{state.replace(" ", "-")}">{state}</span></td>',
        f'<td class="left">{step}</td>',
        f'<td class="left">{shown}</td>',
        f'<td class="left wrap">{fold if differing else ""}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return _card(f'<h3>What was skipped or damaged</h3><ul class="notes">{items}</ul>')


_GRID = """<style>
{style}</style>
<section class="card"><div id="counts"></div><h3>Grid</h3><div id="grid"></div></section>
<script type="application/json" id="board-data">{data}</script>
<script>
{script}</script>"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<header><h1>{heading}</h1><p class="sub">{sub}</p>{nav}</header>
<main>
{body}
{notes}
<section class="card" id="runs"><h3>Runs</h3>{runs}</section>
</main>
<footer>Made by zolab from logs alone: the same logs give the same page.</footer>
<script>
{plotly}
</script>
<script>
{js}</script>
</body>
</html>
"""
