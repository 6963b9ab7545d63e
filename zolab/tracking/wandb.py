"""wandb as a mirror of metrics.jsonl: same keys, same numbers; never the only copy.

Nothing here may stop a run: a failure is told once and the mirror goes quiet.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zolab.tracking.schema import SCHEMA_VERSION
from zolab.tracking.wandb_file import read_log

_log = logging.getLogger(__name__)

#: Seconds that the end of a run waits for rows on their way to wandb.
_PATIENCE = 60.0


class WandbMirror:
    """One attempt's wandb run, offline unless online was asked for and the user is logged in.

    wandb cannot resume offline: each attempt is a run file of its own under the same id. A new
    attempt first logs the rows that no earlier file holds (those a kill kept from the disk), so
    the files together hold every row. Rows are handed over by a thread: wandb takes about a
    millisecond for each.

    Args:
        run_dir: `wandb/` is made in it.
        cell: resolved config of the run.
        run_id: wandb id.
        rows: rows of metrics.jsonl so far.
    """

    def __init__(
        self, run_dir: Path, cell: dict[str, Any], run_id: str, rows: Iterable[dict[str, Any]]
    ) -> None:
        self._run: Any = None
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        held = logged_steps(run_dir)
        try:
            self._run = _start(run_dir, cell, run_id)
        except Exception as error:
            _log.warning("wandb is off for this run: %s", error)
            return
        self._thread = threading.Thread(target=self._hand_over, name="wandb rows", daemon=True)
        self._thread.start()
        for row in rows:
            if row["step"] not in held:
                self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Mirror one row at its own step; returns at once."""
        if self._run is not None:
            self._rows.put(row)

    def _hand_over(self) -> None:
        while (row := self._rows.get()) is not None:
            try:
                values = {key: value for key, value in row.items() if key != "step"}
                self._run.log(values, step=row["step"], commit=True)
            except Exception as error:
                _log.warning("wandb stopped taking rows: %s", error)
                self._run = None
                return

    def close(self, exit_code: int) -> None:
        """Finish the attempt's file, once it has every row."""
        if self._thread is not None:
            self._rows.put(None)
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                _log.warning("wandb takes no rows: its file is left as it is")
                self._run = None
            self._thread = None
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            _log.warning("wandb did not finish: %s", error)
        self._run = None


def logged_steps(run_dir: Path) -> set[int]:
    """Steps that the `.wandb` files of earlier attempts hold."""
    files = sorted((run_dir / "wandb").glob("*run-*/run-*.wandb"))
    return {step for path in files for step in read_log(path).steps.tolist()}


_service_owner: int | None = None


def _start(run_dir: Path, cell: dict[str, Any], run_id: str) -> Any:
    global _service_owner
    if _service_owner != os.getpid():
        # A service inherited through the environment outlives us and may already know our run id
        # from another attempt: then it writes no file at all.
        os.environ.pop("WANDB_SERVICE", None)
        _service_owner = os.getpid()
    import wandb

    tracking = cell["tracking"]
    mode = tracking["mode"]
    if mode == "online" and not _logged_in():
        _log.warning("tracking.mode=online, but nobody is logged in to wandb: logging offline")
        mode = "offline"
    return wandb.init(
        project=tracking["project"],
        entity=tracking["entity"],
        group=tracking["group"],
        tags=tracking["tags"] or None,
        id=run_id,
        name=_label(cell),
        dir=str(run_dir),
        mode=mode,
        resume="allow" if mode == "online" else None,
        config={"zolab": cell, "run_id": run_id, "schema": SCHEMA_VERSION},
        settings=wandb.Settings(
            console="off",
            silent=True,
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
        ),
    )


def _label(cell: dict[str, Any]) -> str:
    parts = [cell["model"]["name"], cell["task"]["name"], cell["optimizer"]["name"]]
    if cell["sparsity"]["name"] != "none":
        parts.append(cell["sparsity"]["name"])
    return "-".join([*parts, f"s{cell['seed']}"])


def _logged_in() -> bool:
    """Whether a key is at hand, without ever asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
