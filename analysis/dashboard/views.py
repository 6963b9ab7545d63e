"""What stands on the pages of the dashboard. React writes every text as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from dash import dcc, html

from analysis import across, cost, plots, speedup
from analysis.convergence import main_table
from analysis.dashboard import drawing
from analysis.dashboard.live import Cell, Snapshot
from analysis.methods import group_runs
from analysis.reading.folders import json_object
from analysis.tables import Table, rate
from zolab.errors import UserError

#: Groups by which runs can be filtered.
FILTERS = ("model", "task", "method", "lr", "seed", "state")
_LOG_BYTES = 6000
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover"}


def value_of(cell: Cell, name: str) -> str:
    """A cell's value of a filter, as text."""
    if name == "state":
        return cell.state
    if name == "method":
        return cell.method
    found = cell.about.get(name)
    return rate(found) if name == "lr" else str(found)


def select(snapshot: Snapshot, wanted: dict[str, Sequence[str]], words: str) -> list[Cell]:
    """The cells that pass every filter and hold every word in what is known of them.

    Args:
        snapshot: all of them.
        wanted: filter name to allowed values; empty allows all.
        words: searched in id, method, model, task, state and error, capitals ignored.
    """
    terms = words.lower().split()
    found = []
    for cell in snapshot.cells.values():
        if any(values and value_of(cell, name) not in values for name, values in wanted.items()):
            continue
        about = " ".join([cell.run_id, cell.error, *(value_of(cell, n) for n in FILTERS)]).lower()
        about += " diverged" if cell.diverged else ""
        if all(term in about for term in terms):
            found.append(cell)
    return found


def _lr(cell: Cell) -> str:
    lr = cell.about.get("lr")
    return "" if lr is None else f", lr {rate(lr)}"


def _where(cell: Cell) -> str:
    about = cell.about
    return "?" if len(about) == 1 else f"{about['model']} · {about['task']} · {about['seed']}"


def _state(cell: Cell) -> Any:
    words = [html.Span(cell.state, className=f"chip s-{cell.state}")]
    if cell.diverged:
        words.append(html.Span("diverged", className="chip s-diverged"))
    return words


def _eta(cell: Cell) -> str:
    return "" if not cell.eta else f", {cell.eta / 60:.0f} min left"


def table(content: Table) -> Any:
    """A table of the report."""
    head = html.Thead(html.Tr([html.Th(cell) for cell in content.headers]))
    body = html.Tbody([html.Tr([html.Td(cell) for cell in row]) for row in content.rows])
    return html.Section(
        [
            html.H3(content.title),
            html.Div(html.Table([head, body]), className="scroll"),
            *(html.P(note, className="note") for note in content.notes),
        ],
        className="card",
    )


def graph(figure: Any, name: str, label: str) -> Any:
    """A figure with a label for those who do not see it."""
    plot = dcc.Graph(id=name, figure=figure, config=_CONFIG, className="graph")
    return html.Div(plot, role="img", **{"aria-label": label})


def results(snapshot: Snapshot, cells: Sequence[Cell], baseline: str | None) -> list[Any]:
    """Speedup and memory panels of the selected runs that have finished."""
    try:
        runs = Snapshot({cell.run_id: cell for cell in cells}).runs()
        groups, notes = group_runs(runs, baseline)
    except UserError as error:
        return [html.Section(html.P(str(error)[:300], className="note"), className="card")]
    panels: list[Any] = []
    colour = plots.colours(groups)
    for number, group in enumerate(groups[:6]):
        panels.append(table(main_table(group)))
        figure = plots.speedup_figure(group, colour)
        made = speedup.speedup_table(group)
        if figure is not None:
            title = html.H3(f"Speedup, {group.model} on {group.task}")
            shape = drawing.dressed(figure.to_dict()["layout"])
            drawn = graph({"data": figure.data, "layout": shape}, f"speedup-{number}",
                          "Speedup over the baseline")  # fmt: skip
            panels.append(html.Section([title, drawn], className="card"))
        panels += [table(made)] if made is not None else []
    panels += [table(across.task_table(tasks)) for tasks in across.task_sets(groups)]
    memory = cost.memory_table(groups)
    panels += [table(memory)] if memory is not None else []
    if len(groups) > 6:
        notes.append(f"{len(groups) - 6} more models and tasks: filter to see them")
    listed = [html.Li(note) for note in notes[:30]]
    if listed:
        panels.append(html.Section([html.H3("Notes"), html.Ul(listed)], className="card"))
    return panels


def run_page(cell: Cell) -> list[Any]:
    """One run: state, health, plots, errors, logs, attempts, config."""
    facts = [
        ("method", cell.method + _lr(cell)),
        ("model · task · seed", _where(cell)),
        ("step", f"{cell.step:,} of {cell.steps:,}" + _eta(cell)),
        (cell.metric or "score", "–" if cell.score is None else f"{cell.score:.4f}"),
        ("best", "–" if cell.best is None else f"{cell.best:.4f}"),
        ("folder", str(cell.folder)),
    ]
    parts: list[Any] = [
        html.P(dcc.Link("← all runs", href="/")),
        html.H2([f"run {cell.run_id} ", *_state(cell)]),
    ]
    if cell.error:
        parts.append(html.Section([html.H3("Error"), html.Pre(cell.error)], className="card bad"))
    warnings = cell.health.warnings if cell.health else ()
    if warnings:
        listed = html.Ul([html.Li(sentence) for sentence in warnings])
        parts.append(html.Section([html.H3("Health"), listed], className="card bad"))
    parts.append(html.Section(_pairs(facts), className="card"))
    compare = "/compare?" + urlencode({"a": cell.run_id})
    parts.append(html.P(dcc.Link("compare with another run", href=compare, id="compare-link")))
    parts.append(_figures(drawing.journal(cell.log), "run"))
    parts += [_attempts(cell), *_texts(cell)]
    config = [(key[7:], value) for key, value in cell.about.items() if key.startswith("config.")]
    fold = html.Details([html.Summary(f"config, {len(config)} keys"), _pairs(config)], open=False)
    parts.append(html.Section(fold, className="card"))
    return parts


def _pairs(pairs: Sequence[tuple[str, Any]]) -> Any:
    rows = [html.Tr([html.Th(key), html.Td(str(value), className="wrap")]) for key, value in pairs]
    return html.Div(html.Table(html.Tbody(rows), className="pairs"), className="scroll")


def _figures(figures: Sequence[tuple[str, drawing.Figure]], prefix: str) -> Any:
    cards = [
        html.Section([html.H3(title), graph(figure, f"{prefix}-{number}", title)], className="card")
        for number, (title, figure) in enumerate(figures)
    ]
    return html.Div(cards, className="panels")


def _attempts(cell: Cell) -> Any:
    """Resume history: one line per attempt."""
    folders = [path for path in cell.folder.glob("attempts/*") if path.name.isdigit()]
    rows = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        number = float(folder.name)
        own = cell.log.filter(cell.log["attempt"] == number) if "attempt" in cell.log else None
        steps = "no row" if own is None or not own.height else (
            f"{own['step'][0]:,} – {own['step'][-1]:,}"
        )  # fmt: skip
        env = json_object(folder / "env.json")
        ended = "error.txt" if (folder / "error.txt").exists() else ""
        host = str(env.get("host") or env.get("hostname") or "–")
        rows.append(html.Tr([html.Td(text) for text in (folder.name, steps, host, ended)]))
    heads = html.Tr([html.Th(head) for head in ("attempt", "rows of steps", "host", "left")])
    body = html.Table([html.Thead(heads), html.Tbody(rows)])
    return html.Section([html.H3("Attempts"), html.Div(body, className="scroll")], className="card")


def _texts(cell: Cell) -> list[Any]:
    """Traceback and the end of the log of the newest attempt."""
    found = []
    numbered = [path for path in cell.folder.glob("attempts/*/error.txt")]
    files = [("Traceback", path) for path in numbered[-1:]]
    said = json_object(cell.folder / "status.json").get("log")
    if isinstance(said, str):
        files.append(("End of the log", cell.folder.__class__(said)))
    for title, path in files:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LOG_BYTES))
                text = file.read(_LOG_BYTES).decode(errors="replace")
        except OSError:
            continue
        found.append(html.Section([html.H3(title), html.Pre(text)], className="card"))
    return found


def compare_page(first: Cell | None, second: Cell | None, cells: Sequence[Cell]) -> list[Any]:
    """Two runs side by side: config keys that differ, and their curves."""
    options = [
        {"label": f"{c.run_id[:16]}  {c.method}{_lr(c)}  {_where(c)}", "value": c.run_id}
        for c in cells
    ]
    chosen = [first.run_id if first else None, second.run_id if second else None]
    pickers = [
        dcc.Dropdown(options, chosen[i], id=f"pick-{'ab'[i]}", placeholder=f"run {'AB'[i]}")
        for i in range(2)
    ]
    parts: list[Any] = [
        html.P(dcc.Link("← all runs", href="/")),
        html.H2("Comparison"),
        html.Div(pickers, className="filters"),
    ]
    if first is None or second is None:
        return [*parts, html.P("Pick two runs.", className="note")]
    keys = sorted({key for c in (first, second) for key in c.about if key.startswith("config.")})
    differing = [
        (key[7:], *(str(c.about.get(key, "–")) for c in (first, second)))
        for key in keys
        if first.about.get(key) != second.about.get(key)
    ]
    summary = [
        ("state", first.state, second.state),
        ("best dev", *("–" if c.best is None else f"{c.best:.4f}" for c in (first, second))),
    ]
    rows = [html.Tr([html.Td(text, className="wrap") for text in row]) for row in
            [*summary, *differing]]  # fmt: skip
    heads = html.Tr([html.Th(head) for head in ("key", "A", "B")])
    body = html.Table([html.Thead(heads), html.Tbody(rows)], id="differences")
    title = html.H3(f"{len(differing)} config keys differ")
    parts.append(html.Section([title, html.Div(body, className="scroll")], className="card"))
    return [*parts, _figures(drawing.overlay(first, second), "both")]
