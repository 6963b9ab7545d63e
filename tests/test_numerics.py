"""Code with other numerics goes on from saved weights; it replays no row that it did not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_resume import exact_rows, prepare
from zolab import begin, journal, ledger, process, run
from zolab.errors import UserError
from zolab.optim import NUMERICS, ZeroOrder

append, replay = journal.Journal.append, ZeroOrder.replay


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Run until a step; `kill` leaves without saving, as SIGKILL does."""

    def stop(cell: Path, step: int, kill: bool = False) -> None:
        def appended(self, record):
            append(self, record)
            if record.step == step and kill:
                raise RuntimeError("power failure")
            if record.step == step:
                process.ask_to_stop("a test")

        with monkeypatch.context() as now:
            now.setattr(journal.Journal, "append", appended)
            with pytest.raises(RuntimeError if kill else process.Preempted):
                run.run_dir(cell)
        process.ask_to_stop(None)

    return stop


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that are replayed from now on."""
    steps: list[int] = []

    def noted(self, step, *rest):
        steps.append(step)
        return replay(self, step, *rest)

    monkeypatch.setattr(ZeroOrder, "replay", noted)
    return steps


def change_numerics(patch: pytest.MonkeyPatch, to: int) -> None:
    for module in (journal, begin, run):
        patch.setattr(module, "NUMERICS", to)


def test_goes_on_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at, replayed: list[int]
) -> None:
    """Saved at 9, killed at 13, then two attempts with other numerics."""
    cell, whole = prepare(tmp_path / "cut"), prepare(tmp_path / "whole")
    expected = run.run_dir(whole)
    stop_at(cell, 9)
    stop_at(cell, 13, kill=True)
    assert replayed == []
    with monkeypatch.context() as later:
        change_numerics(later, NUMERICS + 1)
        stop_at(cell, 16, kill=True)
        assert replayed == [], "rows 10 to 13 were taken by other arithmetic"
        assert len(journal.read_journal(cell)) == 16
        result = run.run_dir(cell)
        assert replayed == list(range(10, 17)), "its own rows it replays"
        here = {"step": 9, "numerics": NUMERICS + 1, "attempt": 3}
        assert (result["numerics"], result["continued"]) == (NUMERICS + 1, [here])
        with pytest.raises(UserError, match=f"began with numerics {NUMERICS}"):
            run.rebuild(cell, 3)
    # the arithmetic itself did not change here, so that nothing else may differ
    assert result["weights_hash"] == expected["weights_hash"]
    assert exact_rows(cell) == exact_rows(whole)
    with pytest.raises(UserError, match=r"--step 10: .* was continued .* after step 9"):
        run.rebuild(cell, 10)
    run.rebuild(cell, 9)


def test_without_a_checkpoint_it_begins_again_from_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at, replayed: list[int]
) -> None:
    cell, whole = prepare(tmp_path / "cut"), prepare(tmp_path / "whole")
    stop_at(cell, 5, kill=True)
    with monkeypatch.context() as later:
        change_numerics(later, NUMERICS + 1)
        result = run.run_dir(cell)
    assert replayed == []
    assert result["continued"] == [{"step": 0, "numerics": NUMERICS + 1, "attempt": 2}]
    assert result["weights_hash"] == run.run_dir(whole)["weights_hash"]


def test_a_run_that_took_no_step_becomes_one_of_the_new_numerics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = prepare(tmp_path, "train.steps=3")
    process.ask_to_stop("a test")
    with pytest.raises(process.Preempted):
        run.run_dir(cell)
    process.ask_to_stop(None)
    with monkeypatch.context() as later:
        change_numerics(later, NUMERICS + 1)
        assert run.run_dir(cell)["continued"] == []
    assert ledger.read_json(cell / "header.json")["numerics"] == NUMERICS + 1
