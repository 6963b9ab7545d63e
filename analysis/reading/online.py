"""Reader of runs kept by a wandb server, through wandb's own API.

Only `scan_history` is used: `Run.history` returns some 500 rows picked at random places, and a
table made of those would be wrong without looking so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.reading.log import RunLog, Unreadable, Watch, from_rows, in_order
from zolab.errors import UserError

_PAGE = 1000


def read_online(
    project: str, notes: list[str], api: Any | None = None, watch: Watch | None = None
) -> list[RunLog]:
    """Read every run of a project that zolab logged.

    Args:
        project: "entity/project", or "project" of the default entity.
        notes: gets sentences about what was skipped.
        api: a `wandb.Api`; None makes one.
        watch: see `log.Watch`.

    Raises:
        UserError: nobody is logged in, or the server does not know the project.
    """
    if api is None:
        api = _api()
    try:
        runs = list(api.runs(project, order="+created_at", per_page=50))
    except Exception as error:  # wandb raises its own and requests' errors alike
        raise UserError(f"wandb project {project!r}: {_line(error)}") from error
    logs = []
    for number, run in enumerate(runs, start=1):
        try:
            logs.append(_read(run))
        except Exception as error:
            notes.append(f"run {run.id}: unreadable, left out ({_line(error)})")
        if watch is not None:
            watch(number, len(runs))
    return logs


def _api() -> Any:
    try:
        import wandb

        return wandb.Api()
    except Exception as error:
        raise UserError(f"--source=online: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read(run: Any) -> RunLog:
    config = run.config if isinstance(run.config, Mapping) else {}
    if not isinstance(config.get("zolab"), Mapping):
        raise Unreadable("no config record: damaged, or not logged by zolab")
    rows = []
    for row in run.scan_history(page_size=_PAGE):
        step = row.get("_step")
        if isinstance(step, int):
            rows.append((step, {k: _number(v) for k, v in row.items() if not k.startswith("_")}))
    schema = config.get("schema")
    return RunLog(
        run_id=run.id,
        config=dict(config["zolab"]),
        table=in_order(from_rows(rows)),
        reported="" if run.state == "finished" else str(run.state),
        schema=schema if isinstance(schema, int) else None,
    )


def _number(value: Any) -> Any:
    """The server sends numbers that JSON lacks as text."""
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value.replace("Infinity", "inf"))
    return value
