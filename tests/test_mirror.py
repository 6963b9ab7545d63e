"""Rows on their way to wandb: all arrive, in order, and nothing that goes wrong stops a run."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from zolab.tracking import wandb as mirror


class FakeRun:
    """Takes rows when allowed to, and breaks at step `breaks`."""

    def __init__(self, breaks: int | None = None) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.threads: set[int] = set()
        self.may_take = threading.Event()
        self.breaks, self.exit_code = breaks, None

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        assert self.may_take.wait(10)
        assert commit
        self.threads.add(threading.get_ident())
        if step == self.breaks:
            raise OSError("the service is gone")
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def start(run: FakeRun, rows: list[dict[str, Any]] = ()) -> mirror.WandbMirror:
        monkeypatch.setattr(mirror, "_start", lambda *_: run)
        return mirror.WandbMirror(tmp_path, {}, "id", rows)

    return start


def test_a_row_is_handed_over_by_another_thread_and_none_is_lost(started) -> None:
    run = FakeRun()
    watched = started(run, [{"step": 1, "loss": 0.5}])
    for step in range(2, 50):  # would wait for ever if the caller's thread had to log
        watched.log({"step": step, "loss": 1.0 / step})
    assert run.rows == []
    run.may_take.set()
    watched.close(3)
    expected = [(1, {"loss": 0.5}), *((s, {"loss": 1.0 / s}) for s in range(2, 50))]
    assert run.rows == expected
    assert threading.get_ident() not in run.threads
    assert run.exit_code == 3


def test_what_goes_wrong_is_told_once(started, caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun(breaks=2)
    run.may_take.set()
    watched = started(run)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 9):
            watched.log({"step": step})
        watched.close(0)
    assert [step for step, _ in run.rows] == [1]
    assert [r.getMessage() for r in caplog.records] == [
        "wandb stopped taking rows: the service is gone"
    ]


def test_a_service_that_stands_still_holds_no_run_up(
    started, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_PATIENCE", 0.05)
    run = FakeRun()
    watched = started(run)
    watched.log({"step": 1})
    watched.close(0)
    assert run.exit_code is None
    assert "wandb takes no rows" in caplog.text
    run.may_take.set()


def test_a_run_without_wandb_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(mirror, "_start", refuse)
    quiet = mirror.WandbMirror(tmp_path, {}, "id", [{"step": 1}])
    quiet.log({"step": 2})
    quiet.close(0)
    assert "wandb is off for this run: no service" in caplog.text
