"""Identity of cells, composing, and the one door to classes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import fake_hub
from zolab import compose
from zolab.config import PARTS, values
from zolab.config.fields import option, part
from zolab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def cell_of(*overrides: str) -> dict[str, Any]:
    return compose.check(compose.compose(compose.prepare_overrides(overrides)))


@functools.cache
def composed() -> dict[str, Any]:
    return compose.resolve(compose.compose())


def id_of(*overrides: str) -> str:
    """Run id with overrides; of the defaults without composing them each time."""
    return compose.run_id(cell_of(*overrides) if overrides else compose.check(composed()))


# --- identity --------------------------------------------------------------------------------


def test_run_id_is_16_hex_digits_and_repeats() -> None:
    name = id_of()
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
    assert id_of() == name


@pytest.mark.parametrize(
    "override",
    [
        "run_root=elsewhere",
        "tracking=local",
        "tracking.group=mine",
        "launcher=slurm",
        "launcher.threads=2",
        "sweep.force=true",
        "train.log_every=1",
        "train.checkpoint_minutes=0.5",
        "train.eval_batch_size=8",
        "model.device=cpu",
        "optimizer.lr=0.0002",
        "optimizer.lr='2e-4'",
        "train.steps=8e2",
        "trusted_targets=[mine.parts]",
    ],
)
def test_run_id_does_not_see(override: str) -> None:
    assert id_of(override) == id_of()


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=1e-4"],
        ["optimizer.eps=1e-2"],
        ["optimizer=mezo_momentum"],
        ["optimizer/direction=gauss8"],
        ["optimizer/placement=paired"],
        ["sparsity=small_weights"],
        ["seed=1"],
        ["train.steps=801"],
        ["train.eval_every=50"],
        ["train.micro_batch_size=8"],
        ["model.dtype=bfloat16"],
        ["model.init=random"],
        ["task.num_train=999"],
        ["task.template='{sentence} So'"],
        ["model=opt_125m"],
    ],
)
def test_run_id_sees(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.fill(fake_hub.use(tmp_path, monkeypatch))
    assert id_of(*overrides) != id_of()


def test_names_of_runs_stay_when_the_schema_grows() -> None:
    # A new key that changes these needs `since` (zolab.config.fields.option); else old runs are
    # not found any more. A changed YAML gives new ids rightly.
    assert id_of() == "edb3ca5743024ee9"
    assert id_of("optimizer=mezo_adam", "sparsity=small_weights") == "39a96d4b47e25453"


def _grow(monkeypatch: pytest.MonkeyPatch, parent: type, name: str, new: Any) -> None:
    """Add a field to a class of the schema, as a later version would."""
    fields = [(f.name, f.type, f) for f in dataclasses.fields(parent)]
    grown = dataclasses.make_dataclass(parent.__name__, [*fields, (name, *new)], kw_only=True)
    monkeypatch.setattr(parent, "__dataclass_fields__", grown.__dataclass_fields__)
    monkeypatch.setitem(parent.__annotations__, name, new[0])
    values.hints.cache_clear()


def test_later_key_at_its_default_changes_no_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = compose.check({**composed(), "run_root": str(tmp_path)})
    folder = compose.write_cell(before)
    optimizer, rule = PARTS["optimizer"][1], PARTS["optimizer.rule"][1]
    mezo, sgd = optimizer["zolab.optim.ZeroOrder"], rule["zolab.optim.Sgd"]
    _grow(monkeypatch, sgd, "nesterov", ("bool", option(False, help="new", since="9.9")))
    again = part("optimizer.rule", {"_target_": "zolab.optim.Sgd"}, help="new", since="9.9")
    _grow(monkeypatch, mezo, "second_rule", ("Any", again))
    now = compose.check({**composed(), "run_root": str(tmp_path)})
    assert now["optimizer"]["rule"]["nesterov"] is False
    assert now["optimizer"]["second_rule"]["_target_"] == "zolab.optim.Sgd"
    assert compose.run_id(now) == folder.name
    assert compose.write_cell(now) == folder  # what an older version wrote is this very cell
    for path, value in ((("rule", "nesterov"), True), (("second_rule", "nesterov"), True)):
        changed = copy.deepcopy(now)
        changed["optimizer"][path[0]][path[1]] = value
        assert compose.run_id(changed) != folder.name
    _grow(monkeypatch, sgd, "loud", ("bool", option(False, help="new, without since")))
    assert compose.run_id(compose.check(composed())) != folder.name
    values.hints.cache_clear()


def test_run_id_sees_sparsity() -> None:
    names = {id_of("sparsity=random", f"sparsity.sparsity={share}") for share in (0, 0.5, 0.75)}
    assert len(names) == 3


def test_run_id_follows_data_content_not_its_path(data_dir: Path, tmp_path: Path) -> None:
    assert id_of(f"task.path={data_dir}") == id_of()
    moved = data_dir.rename(tmp_path / "moved")
    assert id_of(f"task.path={moved}") == id_of()
    (moved / "README.md").write_text("another card")
    assert id_of(f"task.path={moved}") == id_of()
    with (moved / "dev.jsonl").open("a") as file:
        file.write('{"sentence": "one more", "label": 1}\n')
    changed = id_of(f"task.path={moved}")
    assert changed != id_of()
    (moved / "dev.jsonl").unlink()
    assert id_of(f"task.path={moved}") not in (changed, id_of())


def test_run_id_follows_model_content_not_its_path(model_dir: Path) -> None:
    assert id_of(f"model.path={model_dir}") == id_of()
    (model_dir / "optimizer.pt").write_bytes(b"left by a trainer")
    assert id_of(f"model.path={model_dir}") == id_of()
    random = id_of(f"model.path={model_dir}", "model.init=random")
    weights = model_dir / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert id_of(f"model.path={model_dir}") != id_of()
    # random weights do not come from that file
    assert id_of(f"model.path={model_dir}", "model.init=random") == random


def test_hub_model_is_named_by_name_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fake_hub.use(tmp_path, monkeypatch)
    fake_hub.fill(cache)
    fake_hub.fill(cache, commit="b2" * 20, ref="v2")
    fake_hub.fill(cache, name="facebook/opt-350m")
    plain = id_of("model=opt_125m")
    assert id_of("model=opt_125m", "model.revision=main") == plain
    assert id_of("model=opt_125m", f"model.revision={fake_hub.COMMIT}") == plain
    assert id_of("model=opt_125m", "model.path=facebook/opt-350m") != plain
    later = id_of("model=opt_125m", "model.revision=v2")
    assert later != plain
    fake_hub.use(tmp_path, monkeypatch)  # as another process
    fake_hub.fill(cache, commit="b2" * 20)  # the branch has moved, and was downloaded
    assert id_of("model=opt_125m") == later


# --- composing and building ------------------------------------------------------------------


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from zolab import cli, compose\n"
        f"cell = compose.check(compose.compose(['run_root={tmp_path}', 'sparsity=random']))\n"
        "compose.write_cell(cell)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launchers'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_hydra_nor_torch() -> None:
    code = (
        "import sys\n"
        "from zolab import cli\n"
        "assert cli.main(['--help']) == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "zolab.compose.build", "zolab"])
def test_build_makes_only_parts_of_zolab(target: str) -> None:
    with pytest.raises(UserError, match="neither a part of zolab nor listed in trusted_targets"):
        compose.build({"_target_": target, "command": "true"})
    with pytest.raises(UserError, match="neither a part of zolab"):
        compose.build({"_target_": "zolab.optim.ZeroOrder", "rule": {"_target_": target}}, [])


def test_trusted_class_is_checked_through_and_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose.building, "_trusted", set())
    overrides = [
        *("trusted_targets=[fractions]", "optimizer._target_=fractions.Fraction"),
        *("~optimizer.estimator", "~optimizer.direction", "~optimizer.rule"),
        *("~optimizer.placement", "~optimizer.lr", "~optimizer.eps", "~optimizer.name"),
        *("~optimizer.weight_decay", "optimizer.numerator=3"),
    ]
    with pytest.raises(UserError, match="trusted_targets"):
        cell_of(*overrides[1:])
    folder = compose.write_cell(cell_of(f"run_root={tmp_path}", *overrides))
    monkeypatch.setattr(compose.building, "_trusted", set())
    node = compose.read_cell(folder)["optimizer"]  # as a job does
    assert node == {"_target_": "fractions.Fraction", "numerator": 3}
    assert compose.build(node, denominator=4) == 0.75


def test_what_a_class_says_is_passed_on() -> None:
    with pytest.raises(UserError, match=r"num_probes = 0"):
        compose.build({"_target_": "zolab.optim.TwoSided", "num_probes": 0})
    nested = {
        "_target_": "zolab.optim.ZeroOrder",
        "estimator": {"_target_": "zolab.optim.TwoSided", "num_probes": 0},
    }
    with pytest.raises(UserError, match=r"num_probes = 0"):
        compose.build(nested, [])


def test_profile_can_be_chosen_as_launcher(tmp_path: Path) -> None:
    (tmp_path / "site_a.yaml").write_text(
        "defaults: [slurm, _self_]\nname: site_a\npartition: gpu\nsetup: [module load cuda]\n"
    )
    assert compose.register_profiles(tmp_path) == ["site_a"]
    launcher = cell_of("launcher=site_a", "launcher.time_minutes=5")["launcher"]
    assert launcher["kind"] == "slurm"
    assert launcher["partition"] == "gpu"
    assert launcher["setup"] == ["module load cuda"]
    assert launcher["time_minutes"] == 5
    assert launcher["array_parallelism"] == 256
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        compose.register_profiles(tmp_path)


def test_a_composition_leaves_nothing_behind_for_the_next() -> None:
    """Files are read once a process; what overrides do to a config must not reach the next."""
    plain = [compose.compose(), compose.compose(["experiment=masks"])]
    compose.compose(["seed=7", "run_root=elsewhere", "+new=1", "train.steps=3"])
    compose.compose(["experiment=masks", "model.autocast=float32", "seed=9"])
    compose.compose(["experiment=demo"])
    assert [compose.compose(), compose.compose(["experiment=masks"])] == plain


def test_value_overrides_reach_keys_the_yaml_does_not_spell_out() -> None:
    assert compose.prepare_overrides(
        ["model.config.dropout=0.1", "optimizer=mezo", "~sparsity"]
    ) == [
        "++model.config.dropout=0.1",
        "optimizer=mezo",
        "~sparsity",
    ]
    # a sweep over values stays plain: the sweeper sets it on copies
    assert compose.prepare_overrides(["optimizer.lr=1,2"]) == ["optimizer.lr=1,2"]
    assert cell_of("model.config.dropout=0.1")["model"]["config"] == {"dropout": 0.1}


@pytest.mark.parametrize("module", ["zolab", "zolab.cli"])
def test_modules_run_as_the_command(module: str) -> None:
    command = [sys.executable, "-m", module, "repot"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("zolab: repot: no such verb; did you mean 'report'?")


def test_paths_need_no_quotes(data_dir: Path) -> None:
    """Hydra's grammar knows ASCII only."""
    folder = data_dir.rename(data_dir.with_name("Zoë data"))
    assert cell_of(f"task.path={folder}")["task"]["path"] == str(folder)
