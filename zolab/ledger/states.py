"""How far a cell got, as its files tell it: `status.json`, `heartbeat`, `result.json`."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from zolab.ledger.claims import JOB_ID_VARIABLE, LEASE_SECONDS, find_holder
from zolab.ledger.files import read_json, write_json

STATES = ["planned", "submitted", "running", "done", "failed", "cancelled", "preempted", "lost"]
#: Environment of a launched cell: the file its output goes to.
LOG_VARIABLE = "ZOLAB_JOB_LOG"


def write_status(run_dir: str | Path, state: str, *, sync: bool = True, **fields: Any) -> None:
    """Replace status.json by `state`, the time and `fields`, such as `attempt=2` or `error="..."`.

    `attempt`, `job_id`, `host`, `log` and `submission` keep their last value unless given; with
    state `running` job, host and log come from the environment of this process. `error` is null
    unless given. A cell that the user cancelled does not become `preempted`. `sync` as in
    `write_json`.

    Raises:
        ValueError: `state` is none of `STATES`.
    """
    if state not in STATES:
        raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
    old = read_status(run_dir)
    if state == "preempted" and old.get("state") == "cancelled":
        return
    kept = {key: old.get(key) for key in ("attempt", "job_id", "host", "log", "submission")}
    if state == "running":
        kept["job_id"] = os.environ.get(JOB_ID_VARIABLE) or None
        kept["log"] = os.environ.get(LOG_VARIABLE) or None
        kept["host"] = socket.gethostname()
    body = {"state": state, "time": time.time(), **kept, "error": None, **fields}
    write_json(Path(run_dir) / "status.json", body, sync)


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """The content of status.json; empty if it is missing or half-written."""
    return read_json(Path(run_dir) / "status.json")


def read_heartbeat(run_dir: str | Path) -> dict[str, Any]:
    """The last published progress; empty if there is none or it is unreadable."""
    return read_json(Path(run_dir) / "heartbeat")


def state_of(run_dir: str | Path, lease: float = LEASE_SECONDS, now: float | None = None) -> str:
    """The state of a cell as its files tell it, one of `STATES`.

    `done` needs result.json, whatever status.json says; `running` needs a live holder; a cell that
    says it runs, or is done, without either is `lost`. The scheduler is not asked.
    """
    run_dir = Path(run_dir)
    if (run_dir / "result.json").exists():
        return "done"
    holder = find_holder(run_dir, lease, now)
    if holder is not None and not holder.stale:
        return "running"
    if (run_dir / "result.json").exists():  # finished between the two looks
        return "done"
    said = read_status(run_dir).get("state")
    if said in ("failed", "cancelled", "preempted"):
        return said
    if said in ("running", "done", "lost") or holder is not None:
        return "lost"
    return "submitted" if said == "submitted" else "planned"


def next_attempt(run_dir: str | Path) -> Path:
    """Make and return attempts/<n> with the lowest n, counted from 1, above all that exist."""
    attempts = Path(run_dir) / "attempts"
    attempts.mkdir(exist_ok=True)
    number = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            (attempts / str(number)).mkdir()
            return attempts / str(number)
