"""The command line: every mistake is one line and status 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zolab import __version__, assets, cli, compose, ledger
from zolab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULT = {
    "state": "done",
    "steps": 4,
    "forwards_total": 8,
    "best": {"step": 2, "dev/accuracy": 0.75, "test/accuracy": 0.5},
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder, where a stray file is seen."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for `zolab.run`: what the command line does around a run needs no training."""
    module = types.ModuleType("zolab.run")
    module.calls = []

    def run_dir(path: Path) -> dict[str, Any]:
        module.calls.append(Path(path))
        return RESULT

    def replay(run: Path, step: int, out: Path) -> None:
        module.calls.append((Path(run), step, Path(out)))

    module.run_dir, module.replay = run_dir, replay
    monkeypatch.setitem(sys.modules, "zolab.run", module)
    monkeypatch.setattr("zolab.run", module, raising=False)
    return module


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must be refused."""
    status = cli.main(list(arguments))
    said = capsys.readouterr()
    assert status == 2, said
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("zolab: ")
    return lines[0]


MISTAKES = [
    ("task=uci_snt", "task = 'uci_snt': no such choice; did you mean 'uci_sent'?"),
    ("optimizer=mezzo", "optimizer = 'mezzo': no such choice; did you mean 'mezo'?"),
    ("optimizer/direction=gauss9", "did you mean 'gauss8'?"),
    ("launcher=slurmm", "launcher = 'slurmm': no such choice; did you mean 'slurm'?"),
    ("experiment=demoo", "experiment = 'demoo': no such choice; did you mean 'demo'?"),
    (
        "experiment=mezo/tabel_3",
        "experiment/mezo = 'tabel_3': no such choice; did you mean 'table_3'?",
    ),
    ("optimzer=mezo", "optimzer = 'mezo': unknown key; did you mean 'optimizer'?"),
    ("optimzer/direction=gauss8", "unknown config group 'optimzer/direction'; did you mean"),
    ("optimizer.lrr=1", "optimizer.lrr = 1: unknown key; did you mean 'lr'?"),
    ("+optimizer.lrr=1", "optimizer.lrr = 1: unknown key; did you mean 'lr'?"),
    ("+new.key=1", "new = {'key': 1}: unknown key"),
    ("train.step=1", "train.step = 1: unknown key; did you mean 'steps'?"),
    ("optimizer.direction.nois=gauss", "unknown key; did you mean 'noise'?"),
    ("optimizer.rule.beta=0.9", "optimizer.rule.beta = 0.9: unknown key"),
    ("steps=5", "steps = 5: unknown key; did you mean 'train.steps'?"),
    ("optimizer.lr=abc", "optimizer.lr = 'abc': expected a number >= 0"),
    ("optimizer.lr=-1", "optimizer.lr = -1: expected a number >= 0"),
    ("optimizer.lr=", "optimizer.lr = '': expected a number >= 0"),
    ("optimizer.lr=nan", "optimizer.lr = nan: expected a number >= 0"),
    ("optimizer.eps=0", "optimizer.eps = 0: expected a number > 0"),
    ("train.batch_size=0", "train.batch_size = 0: expected a whole number >= 1"),
    ("train.steps=-5", "train.steps = -5: expected a whole number >= 0"),
    ("model.path=/no/model", "model.path = '/no/model': no such folder"),
    ("model.path=models/mine", "model.path = 'models/mine': no such folder, and it is not in the"),
    ("task.path=/no/data", "task.path = '/no/data': no such folder"),
    ("task=sst2", "task.hub.name = 'nyu-mll/glue': not in the cache of datasets"),
    ("run_root=${nowhere}", "run_root: "),
    ("optimizer.lr=[1", "optimizer.lr=[1: not a valid override"),
    ("optimizer=null", "optimizer=null: optimizer takes the name of a choice"),
    ("optimizer/rule=3", "optimizer/rule=3: optimizer/rule takes the name of a choice"),
    ("hydra=null", "a config group takes the name of a choice"),
    ("sparsity.sparsity=0.5", "choose sparsity=small_weights, large_weights, random or layers"),
    ("trian", "trian: not a valid override; expected KEY=VALUE"),
    ("run_root=/dev/null", "run_root = '/dev/null': /dev/null is a file"),
]
#: Those that reach the sweeper by a way of their own: groups, keys, values, folders.
SWEPT = [MISTAKES[i] for i in (0, 5, 6, 8, 15, 21, -1)]


@pytest.mark.parametrize(
    ("extra", "override", "message"),
    [
        *((["seed=1"], *mistake) for mistake in MISTAKES),
        *((["-m", "seed=0,1"], *mistake) for mistake in SWEPT),
    ],
)
def test_mistake_is_one_line_status_2_and_leaves_nothing(
    extra: list[str],
    override: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    runner: types.ModuleType,
    empty_folder: Path,
) -> None:
    assert message in _refused(capsys, *extra, override)
    assert runner.calls == []
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("share", ["1.0", "1.5", "-0.1"])
def test_sparsity_outside_its_range_is_refused(
    share: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    said = _refused(capsys, "sparsity=small_weights", f"sparsity.sparsity={share}")
    assert f"sparsity.sparsity = {share}: expected a number >= 0 and < 1" in said
    assert list(empty_folder.iterdir()) == []


def test_model_folder_without_weights_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, empty_folder: Path
) -> None:
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(assets.model_dir("opt-prompt-2m"), tmp_path / "bare", ignore=ignore)
    assert "no weights in that folder" in _refused(capsys, f"model.path={tmp_path / 'bare'}")
    assert list(empty_folder.iterdir()) == []


def test_run_root_that_is_a_file_is_refused_and_kept(
    capsys: pytest.CaptureFixture[str], empty_folder: Path, runner: types.ModuleType
) -> None:
    (empty_folder / "runs").write_text("precious")
    assert "run_root = 'runs': runs is a file" in _refused(capsys)
    assert (empty_folder / "runs").read_text() == "precious"
    assert runner.calls == []


def test_null_in_a_sweep_over_choices_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "takes the name of a choice" in _refused(capsys, "-m", "optimizer=mezo,null")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    file = tmp_path / "mine" / "experiment" / "odd.yaml"
    file.write_text("# @package _global_\ngrid:\n  - optimizer: [mezo, null]\n")
    said = _refused(capsys, "--config-dir", str(tmp_path / "mine"), "experiment=odd", "-m")
    assert "takes the name of a choice" in said


def test_no_experiment_may_be_said_aloud(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["experiment=null", "debug=null", "train=smoke"]) == 0
    assert len(runner.calls) == 1


def test_several_values_without_m_and_keys_given_twice_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "seed=0,1: several values; add -m" in _refused(capsys, "seed=0,1")
    assert "seed is given twice: seed=0 and seed=1" in _refused(capsys, "seed=0", "seed=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repot", "runs"], "repot: no such verb; did you mean 'report'?"),
        (["xyz"], "xyz: no such verb (verbs: plan, doctor, report"),
        (["--multirn"], "--multirn: no such option; did you mean '--multirun'?"),
        (["replay", "nope", "--step", "1", "--out", "x"], "RUN = 'nope': no run directory"),
        (["replay", "nope", "--step", "-1", "--out", "x"], "expected a whole number >= 0"),
        (["replay", "nope"], "the following arguments are required: --out, --step"),
        (["status", "nope"], "RUNS = 'nope': no such folder"),
    ],
)
def test_wrong_verb_or_argument_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert message in _refused(capsys, *arguments)
    assert list(empty_folder.iterdir()) == []


def test_broken_yaml_of_the_user_names_file_and_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "odd.yaml").write_text("kind: classification\nname: [\n")
    said = _refused(capsys, "--config-dir", str(tmp_path / "mine"), "task=odd")
    assert "odd.yaml:" in said


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"  {verb} " in said
    assert "opt-prompt-2m" in said
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main(["--cfg", "job"]) == 0
    assert "_target_: zolab.optim.ZeroOrder" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: zolab {verb}")


def test_help_answers_within_a_second_and_a_half() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zolab", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 1.5


# --- runs ------------------------------------------------------------------------------------


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
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run_dir = _failing(ledger.Busy(Path("runs/x"), "node7", 42, 3.0))
    assert cli.main(["debug=smoke"]) == 1
    assert capsys.readouterr().err == (
        "zolab: runs/x is held by process 42 on node7, last sign of life 3 s ago\n"
    )
    runner.run_dir = _failing(UserError("data/train.jsonl:7: not a JSON object"))
    assert _refused(capsys, "debug=smoke") == "zolab: data/train.jsonl:7: not a JSON object"
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


def test_replay_takes_a_folder_or_an_id(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = compose.check(compose.compose(["debug=smoke"]))
    folder = compose.write_cell(cell)
    assert cli.main(["replay", folder.name, "--step", "3", "--out", "made"]) == 0
    assert cli.main(["replay", str(folder), "--step", "0", "--out", "made"]) == 0
    assert runner.calls == [(folder, 3, Path("made")), (folder, 0, Path("made"))]
    close = folder.name[:-1] + "z"
    said = _refused(capsys, "replay", close, "--step", "3", "--out", "made")
    assert f"did you mean {folder.name!r}?" in said


def test_replay_into_what_is_no_folder_is_refused(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    folder = compose.write_cell(compose.check(compose.compose(["debug=smoke"])))
    (empty_folder / "file").write_text("precious")
    command = ["replay", str(folder), "--step", "3", "--out"]
    assert "--out file: a file, expected a folder" in _refused(capsys, *command, "file")
    assert "--out file/a/b: file is a file" in _refused(capsys, *command, "file/a/b")
    assert runner.calls == []
    assert (empty_folder / "file").read_text() == "precious"

    def replay(run: Path, step: int, out: Path) -> None:
        raise OSError(28, "No space left on device", str(out / "model.safetensors"))

    runner.replay = replay
    assert "--out made: cannot write there: No space left" in _refused(capsys, *command, "made")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_replay_into_a_closed_folder_is_refused(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    folder = compose.write_cell(compose.check(compose.compose(["debug=smoke"])))
    (empty_folder / "closed").mkdir(mode=0o500)
    said = _refused(capsys, "replay", str(folder), "--step", "3", "--out", "closed/a/b")
    assert "closed cannot be written" in said
    assert runner.calls == []


def test_status_of_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    (empty_folder / "file").write_text("")
    assert "RUNS = 'file': a file, expected a folder of runs" in _refused(capsys, "status", "file")


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
