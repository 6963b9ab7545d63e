"""The command line: every mistake is one line and status 2, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from zolab import __version__, assets, cli

ROOT = Path(__file__).resolve().parents[2]

Refused = Callable[..., str]

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
    refused: Refused,
    runner: types.ModuleType,
    empty_folder: Path,
) -> None:
    assert message in refused(*extra, override)
    assert runner.calls == []
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("share", ["1.0", "1.5", "-0.1"])
def test_sparsity_outside_its_range_is_refused(
    share: str, refused: Refused, empty_folder: Path
) -> None:
    said = refused("sparsity=small_weights", f"sparsity.sparsity={share}")
    assert f"sparsity.sparsity = {share}: expected a number >= 0 and < 1" in said
    assert list(empty_folder.iterdir()) == []


def test_model_folder_without_weights_is_refused(
    refused: Refused, tmp_path: Path, empty_folder: Path
) -> None:
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(assets.model_dir("opt-prompt-2m"), tmp_path / "bare", ignore=ignore)
    assert "no weights in that folder" in refused(f"model.path={tmp_path / 'bare'}")
    assert list(empty_folder.iterdir()) == []


def test_run_root_that_is_a_file_is_refused_and_kept(
    refused: Refused, empty_folder: Path, runner: types.ModuleType
) -> None:
    (empty_folder / "runs").write_text("precious")
    assert "run_root = 'runs': runs is a file" in refused()
    assert (empty_folder / "runs").read_text() == "precious"
    assert runner.calls == []


def test_null_in_a_sweep_over_choices_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "takes the name of a choice" in refused("-m", "optimizer=mezo,null")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    file = tmp_path / "mine" / "experiment" / "odd.yaml"
    file.write_text("# @package _global_\ngrid:\n  - optimizer: [mezo, null]\n")
    said = refused("--config-dir", str(tmp_path / "mine"), "experiment=odd", "-m")
    assert "takes the name of a choice" in said


def test_no_experiment_may_be_said_aloud(
    runner: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["experiment=null", "debug=null", "train=smoke"]) == 0
    assert len(runner.calls) == 1


def test_several_values_without_m_and_keys_given_twice_are_refused(
    refused: Refused,
) -> None:
    assert "seed=0,1: several values; add -m" in refused("seed=0,1")
    assert "seed is given twice: seed=0 and seed=1" in refused("seed=0", "seed=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repot", "runs"], "repot: no such verb; did you mean 'report'?"),
        (["xyz"], "xyz: no such verb (verbs: plan, doctor, report"),
        (["--multirn"], "--multirn: no such option; did you mean '--multirun'?"),
        (["--config-dir"], "--config-dir: a value must follow"),
        (["--cfg", "foo"], "--cfg foo: expected one of job, hydra, all"),
        (["--cfg=foo"], "--cfg foo: expected one of job, hydra, all"),
        (["plan", "--config-dir", "no"], "--config-dir no: expected a folder with YAML files"),
        (["replay", "nope", "--step", "1", "--out", "x"], "RUN = 'nope': no run directory"),
        (["replay", "nope", "--step", "-1", "--out", "x"], "expected a whole number >= 0"),
        (["replay", "nope"], "the following arguments are required: --out, --step"),
        (["status", "nope"], "RUNS = 'nope': no such folder"),
    ],
)
def test_wrong_verb_or_argument_is_refused(
    arguments: list[str], message: str, refused: Refused, empty_folder: Path
) -> None:
    assert message in refused(*arguments)
    assert list(empty_folder.iterdir()) == []


def test_broken_yaml_of_the_user_names_file_and_line(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "odd.yaml").write_text("kind: classification\nname: [\n")
    said = refused("--config-dir", str(tmp_path / "mine"), "task=odd")
    assert "odd.yaml:" in said


@pytest.mark.parametrize("verb", [[], ["plan"], ["doctor"]])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=odd", "odd.yaml:"),
        ("task=bytes", "task/bytes.yaml is not UTF-8"),
        ("task=none", "task = 'none': no such choice"),
        ("seed=${nope}", "Interpolation key 'nope' not found"),
    ],
)
def test_what_cannot_be_composed_is_told_by_every_verb(
    verb: list[str], override: str, message: str, refused: Refused, tmp_path: Path
) -> None:
    folder = tmp_path / "mine" / "task"
    folder.mkdir(parents=True)
    (folder / "odd.yaml").write_text("kind: classification\nname: [\n")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe")
    assert message in refused(*verb, "--config-dir", str(tmp_path / "mine"), override)


@pytest.mark.parametrize("verb", [["-m"], ["plan"]])
def test_no_choice_in_a_grid_is_told(verb: list[str], refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "g.yaml").write_text("# @package _global_\ngrid:\n  - optimizer: null\n")
    said = refused(*verb, "--config-dir", str(tmp_path / "mine"), "experiment=g")
    assert "takes the name of a choice" in said


def test_output_that_cannot_say_a_letter_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setitem(cli.VERBS, "status", (lambda _: print("80.8 ± 0.6") or 0, ""))
    assert cli.main(["status"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"80.8 ? 0.6\n"


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["status", "runs"]])
def test_output_that_cannot_be_written_is_told_in_a_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    with monkeypatch.context() as patched, open("/dev/full", "w") as full:
        patched.setattr(sys, "stdout", full)
        assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "zolab: standard output: No space left on device\n"


def test_a_device_that_is_full_elsewhere_is_no_matter_of_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(_: list[str]) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(cli.VERBS, "status", (write, ""))
    with pytest.raises(OSError, match="No space"):
        cli.main(["status"])
