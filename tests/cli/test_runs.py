"""The command line around a run: what it says, what its status is, what it hands on."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import RESULT
from zolab import cli, compose, ledger
from zolab.errors import UserError

Refused = Callable[..., str]


def test_single_run_says_what_runs_and_how_it_ended(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert cli.main(["debug=smoke", "sparsity=random", "seed=3"]) == 0
    (folder,) = runner.calls
    assert folder == Path("runs") / folder.name
    assert len(folder.name) == 16
    assert compose.read_cell(folder)["seed"] == 3
    assert compose.run_id(compose.read_cell(folder)) == folder.name
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        f"run {folder.name}: mezo + random 0.75, opt-prompt-2m on uci_sent, seed 3 -> {folder}"
    )
    assert last == (
        "done: 4 steps, 8 forwards, best dev accuracy 0.750 at step 2, test accuracy 0.500 -> "
        f"{folder / 'result.json'}"
    )
    # Hydra left no folder of its own
    assert {path.name for path in empty_folder.iterdir()} == {"runs"}
    assert cli.main(["debug=smoke", "sparsity=random", "seed=3", "tracking=local"]) == 0
    assert runner.calls == [folder, folder]


def _failing(error: BaseException) -> Callable[[Path], dict[str, Any]]:
    def run_dir(path: Path) -> dict[str, Any]:
        raise error

    return run_dir


def test_failing_run_is_status_1_with_the_place_of_its_traceback(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run_dir = _failing(RuntimeError("the matrix fell over\nand more"))
    assert cli.main(["debug=smoke"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("failed: RuntimeError: the matrix fell over")
    file = Path(said[1].removeprefix("zolab: traceback in "))
    assert "Traceback" in file.read_text()
    # the runner's own record is pointed to when there is one
    newest = file.parent / "attempts" / "10"
    for number in ("2", "10"):
        (file.parent / "attempts" / number).mkdir(parents=True)
        (file.parent / "attempts" / number / "error.txt").write_text("theirs")
    assert cli.main(["debug=smoke"]) == 1
    assert capsys.readouterr().err.splitlines()[1].endswith(str(newest / "error.txt"))
    assert (newest / "error.txt").read_text() == "theirs"


def test_busy_cell_mistakes_in_data_and_interrupts_have_their_status(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    runner.run_dir = _failing(ledger.Busy(Path("runs/x"), "node7", 42, 3.0))
    assert cli.main(["debug=smoke"]) == 1
    assert capsys.readouterr().err == (
        "zolab: runs/x is held by process 42 on node7, last sign of life 3 s ago\n"
    )
    runner.run_dir = _failing(UserError("data/train.jsonl:7: not a JSON object"))
    assert refused("debug=smoke") == "zolab: data/train.jsonl:7: not a JSON object"
    runner.run_dir = _failing(KeyboardInterrupt())
    assert cli.main(["debug=smoke"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_unfinished_run_is_not_status_0(runner: types.ModuleType) -> None:
    runner.run_dir = lambda path: {**RESULT, "state": "preempted"}
    assert cli.main(["debug=smoke"]) == 1


def test_hydra_settings_of_the_process_are_put_back(
    runner: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = sys.argv
    assert cli.main(["debug=smoke"]) == 0
    assert cli.main(["optimizer=nope"]) == 2
    assert sys.argv is before
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize("extra", ["launcher=slurm", "sweep.dry_run=true", "sweep.force=true"])
def test_single_cell_goes_through_the_launcher_when_it_must(
    extra: str, monkeypatch: pytest.MonkeyPatch, runner: types.ModuleType
) -> None:
    import launchers.sweep

    seen: list[Any] = []

    def launch(cells: Any, launcher: Any, sweep: Any, **_: Any) -> Any:
        seen.append((cells, launcher["kind"], sweep))
        return types.SimpleNamespace(exit_code=5)

    monkeypatch.setattr(launchers.sweep, "launch", launch)
    assert cli.main(["debug=smoke", extra]) == 5
    ((cells, kind, _),) = seen
    assert len(cells) == 1
    assert kind == ("slurm" if extra == "launcher=slurm" else "local")
    assert runner.calls == []


def test_experiment_with_a_grid_sweeps_without_m(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert cli.main(["experiment=demo", "sweep.dry_run=true"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("17 cells: 17 to run")
    assert list(empty_folder.iterdir()) == []


# --- verbs -----------------------------------------------------------------------------------


def test_replay_takes_a_folder_or_an_id(runner: types.ModuleType, refused: Refused) -> None:
    cell = compose.check(compose.compose(["debug=smoke"]))
    folder = compose.write_cell(cell)
    assert cli.main(["replay", folder.name, "--step", "3", "--out", "made"]) == 0
    assert cli.main(["replay", str(folder), "--step", "0", "--out", "made"]) == 0
    assert runner.calls == [(folder, 3, Path("made")), (folder, 0, Path("made"))]
    close = folder.name[:-1] + "z"
    said = refused("replay", close, "--step", "3", "--out", "made")
    assert f"did you mean {folder.name!r}?" in said


def test_replay_into_what_is_no_folder_is_refused(
    runner: types.ModuleType, refused: Refused, empty_folder: Path
) -> None:
    folder = compose.write_cell(compose.check(compose.compose(["debug=smoke"])))
    (empty_folder / "file").write_text("precious")
    command = ["replay", str(folder), "--step", "3", "--out"]
    assert "--out file: a file, expected a folder" in refused(*command, "file")
    assert "--out file/a/b: file is a file" in refused(*command, "file/a/b")
    assert runner.calls == []
    assert (empty_folder / "file").read_text() == "precious"

    def replay(run: Path, step: int, out: Path) -> None:
        raise OSError(28, "No space left on device", str(out / "model.safetensors"))

    runner.replay = replay
    assert "--out made: cannot write there: No space left" in refused(*command, "made")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_replay_into_a_closed_folder_is_refused(
    runner: types.ModuleType, refused: Refused, empty_folder: Path
) -> None:
    folder = compose.write_cell(compose.check(compose.compose(["debug=smoke"])))
    (empty_folder / "closed").mkdir(mode=0o500)
    said = refused("replay", str(folder), "--step", "3", "--out", "closed/a/b")
    assert "closed cannot be written" in said
    assert runner.calls == []


def test_status_of_a_file_is_refused(refused: Refused, empty_folder: Path) -> None:
    (empty_folder / "file").write_text("")
    assert "RUNS = 'file': a file, expected a folder of runs" in refused("status", "file")


def test_status_lists_cells_and_counts_states(capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for seed in range(3):
        cell = compose.check(compose.compose(["debug=smoke", f"seed={seed}"]))
        names.append(compose.write_cell(cell))
    (names[0] / "result.json").write_text(json.dumps(RESULT))
    ledger.write_status(names[1], "failed", error="out of luck")
    ledger.write_json(names[1] / "heartbeat", {"step": 3, "steps": 4})
    assert cli.main(["status"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "3 cells: 1 planned, 1 done, 1 failed"
    (failed,) = [line for line in said if line.startswith(names[1].name)]
    assert "failed" in failed
    assert "3/4" in failed
    assert failed.endswith("mezo, opt-prompt-2m on uci_sent, seed 1")


def test_report_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import analysis.cli

    seen: list[list[str]] = []

    def report(arguments: list[str]) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr(analysis.cli, "report", report)
    assert cli.main(["report", "runs", "--out", "there"]) == 0
    assert seen == [["runs", "--out", "there"]]
