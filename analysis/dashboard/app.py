"""The Dash application: pages, filters, and who may look."""

from __future__ import annotations

import hmac
import html as html_lib
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

import flask
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from analysis.dashboard import drawing, views
from analysis.dashboard.assets import asset
from analysis.dashboard.board import as_script, board
from analysis.dashboard.live import Cell, Live, Snapshot

_INDEX = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{%title%}</title>
<link rel="icon" href="data:,">
{%css%}
<style>CSS</style>
</head>
<body>
<div id="first">
<header><h1>TITLE</h1><div id="counts"></div></header>
<main>
<div class="filters"></div>
<section class="card"><h3>Grid</h3><div id="grid"></div></section>
<section class="card"><h3>Runs</h3><div id="list"></div></section>
</main>
</div>
{%app_entry%}
<script type="application/json" id="board-data">BOARD</script>
<script>
SCRIPT</script>
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""
_COOKIE = "zolab-dashboard"


def make_app(live: Live, *, baseline: str | None = None, token: str | None = None) -> Dash:
    """The application over a folder of runs.

    Args:
        live: what it shows.
        baseline: method that speedups are over; None means "mezo".
        token: without it in the address or a cookie every request is refused; None: only requests
            that name this machine as their host are served, so that no foreign page can ask
            through the user's browser.
    """
    app = _App(
        __name__,
        title=f"zolab: {live.root.name}",
        update_title=None,
        suppress_callback_exceptions=True,
        include_assets_files=False,
    )
    app.live = live
    _guard(app.server, token)
    app.layout = lambda: _frame(live, live.snapshot())
    _callbacks(app, live, baseline)
    return app


def _guard(server: flask.Flask, token: str | None) -> None:
    @server.before_request
    def check() -> flask.Response | tuple[str, int] | None:
        request = flask.request
        if token is None:
            name = request.host.rsplit(":", 1)[0] if ":" in request.host else request.host
            local = ("127.0.0.1", "localhost", "[::1]")
            return None if name in local else ("this page is for this machine only", 403)
        given = request.args.get("token") or request.cookies.get(_COOKIE) or ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            return "the address needs its token: see the terminal", 403
        return None

    @server.after_request
    def headers(response: flask.Response) -> flask.Response:
        if token is not None and flask.request.args.get("token"):
            response.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


class _App(Dash):
    """Dash, whose pages begin with the board: drawn before anything of Dash has been loaded."""

    live: Live

    def interpolate_index(self, **parts: Any) -> str:
        """The page with what there is to see now; see `board.js`."""
        words = {f"{{%{name}%}}": text for name, text in parts.items()}
        words |= {
            "CSS": asset("page.css", "analysis") + asset("dashboard.css"),
            "SCRIPT": asset("board.js"),
            "TITLE": html_lib.escape(_heading(self.live)),
            "BOARD": as_script(_board(self.live.snapshot())),
        }
        return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], _INDEX)


def _heading(live: Live) -> str:
    return f"Runs in {live.root.resolve().name}"


def _board(snapshot: Snapshot, cells: Sequence[Cell] | None = None) -> dict[str, Any]:
    shown = list(snapshot.cells.values()) if cells is None else cells
    return board(shown, snapshot.unread)


def _frame(live: Live, snapshot: Snapshot) -> Any:
    return html.Div(
        [
            dcc.Location(id="at", refresh="callback-nav"),
            dcc.Interval(id="tick", interval=1000 * live.every),
            dcc.Store(id="version"),
            dcc.Store(id="board"),
            dcc.Store(id="drawn"),
            html.Header(
                [
                    html.H1(_heading(live)),
                    html.Div(id="counts"),
                ]
            ),
            html.Main([html.Div(_overview(snapshot), id="overview"), html.Div(id="page")]),
        ]
    )


def _overview(snapshot: Snapshot) -> list[Any]:
    cells = list(snapshot.cells.values())
    pickers = [
        dcc.Dropdown(
            _values(cells, name), [], id=f"by-{name}", multi=True, placeholder=name,
            className="picker",
        )
        for name in views.FILTERS
    ]  # fmt: skip
    search = dcc.Input(id="words", type="search", placeholder="search runs", debounce=True)
    metrics = _metrics(cells)
    first = metrics[0] if metrics else None
    return [
        html.Div([search, *pickers], className="filters", role="search"),
        html.Section([html.H3("Grid"), html.Div(id="grid")], className="card"),
        html.Section(
            [
                html.H3("Convergence"),
                html.Div(
                    [
                        dcc.RadioItems(drawing.AXES, "forwards_total", id="axis", inline=True),
                        dcc.Dropdown(metrics, first, id="metric", clearable=False),
                    ],
                    className="filters",
                ),
                html.Div(id="curves"),
            ],
            className="card",
        ),
        html.Section([html.H3("Runs"), html.Div(id="list")], className="card"),
        html.Button("Tables of finished runs", id="show-results", className="button"),
        html.Div(id="results"),
    ]  # fmt: skip


def _values(cells: Sequence[Cell], name: str) -> list[str]:
    return sorted({views.value_of(cell, name) for cell in cells})


def _metrics(cells: Sequence[Cell]) -> list[str]:
    found = {n for c in cells for n in c.log.columns if n.startswith("dev/")}
    return sorted(found, key=lambda name: (name == "dev/loss", name))


def _curves(cells: Sequence[Cell], axis: str, metric: str | None) -> list[Any]:
    if metric is None:
        return [html.P("no evaluation yet", className="note")]
    figure, note = drawing.curves(cells, axis, metric)
    said = [html.P(note, className="note")] if note else []
    return [views.graph(figure, "convergence", "Dev metric over the cost"), *said]


def _callbacks(app: Dash, live: Live, baseline: str | None) -> None:
    filters = [Input(f"by-{name}", "value") for name in views.FILTERS]

    def chosen(words: str | None, values: Sequence[Any]) -> tuple[Snapshot, list[Cell]]:
        snapshot = live.snapshot()
        wanted = {name: value or [] for name, value in zip(views.FILTERS, values, strict=True)}
        return snapshot, views.select(snapshot, wanted, words or "")

    @app.callback(Output("version", "data"), Input("tick", "n_intervals"), State("version", "data"))
    def tick(_: int | None, version: int | None) -> Any:
        now = live.snapshot().version
        return no_update if now == version else now

    @app.callback(
        Output("board", "data"), Output("metric", "options"), Output("metric", "value"),
        *(Output(f"by-{n}", "options") for n in views.FILTERS),
        Input("version", "data"), Input("words", "value"), *filters, State("metric", "value"),
        prevent_initial_call=True,
    )  # fmt: skip
    def show(_: int, words: str | None, *rest: Any) -> Any:
        *values, metric = rest
        snapshot, cells = chosen(words, values)
        every = list(snapshot.cells.values())
        known = _metrics(every)
        first = known[0] if known and metric not in known else no_update
        return (
            _board(snapshot, cells), known, first,
            *(_values(every, name) for name in views.FILTERS),
        )  # fmt: skip

    @app.callback(
        Output("curves", "children"), Input("version", "data"), Input("axis", "value"),
        Input("metric", "value"), Input("words", "value"), *filters, prevent_initial_call=True,
    )  # fmt: skip
    def draw(_: int, axis: str, metric: str | None, words: str | None, *values: Any) -> Any:
        _, cells = chosen(words, values)
        known = _metrics(cells)
        return _curves(cells, axis, metric or (known[0] if known else None))

    @app.callback(
        Output("results", "children"), Input("show-results", "n_clicks"), State("words", "value"),
        *(State(f"by-{name}", "value") for name in views.FILTERS), prevent_initial_call=True,
    )  # fmt: skip
    def tables(_: int, words: str | None, *values: Any) -> Any:
        snapshot, cells = chosen(words, values)
        return views.results(snapshot, cells, baseline)

    app.clientside_callback(
        "(data) => { if (data) window.zolab.draw(data); return dash_clientside.no_update; }",
        Output("drawn", "data"), Input("board", "data"),
    )  # fmt: skip

    @app.callback(
        Output("at", "search"), Input("pick-a", "value"), Input("pick-b", "value"),
        State("at", "search"), prevent_initial_call=True,
    )  # fmt: skip
    def pick(a: str | None, b: str | None, search: str) -> Any:
        made = "?" + urlencode({k: v for k, v in (("a", a), ("b", b)) if v})
        return no_update if made == search else made

    @app.callback(
        Output("page", "children"), Output("overview", "style"), Input("at", "pathname"),
        Input("at", "search"), Input("version", "data"),
    )  # fmt: skip
    def page(path: str | None, search: str | None, _: int) -> Any:
        cells = live.snapshot().cells
        hidden, shown = {"display": "none"}, {}
        kind, _, rest = (path or "/").lstrip("/").partition("/")
        if kind == "run":
            cell = cells.get(unquote(rest))
            gone = [html.P(dcc.Link("← all runs", href="/")), html.P(f"no run {unquote(rest)}")]
            return (views.run_page(cell) if cell else gone), hidden
        if kind == "compare":
            asked = parse_qs((search or "").lstrip("?"))
            pair = [cells.get(asked.get(name, [""])[0]) for name in "ab"]
            if ctx.triggered_id == "version" and None in pair:
                return no_update, hidden  # nobody's list is changed under their fingers
            return views.compare_page(*pair, list(cells.values())), hidden
        return [], shown
