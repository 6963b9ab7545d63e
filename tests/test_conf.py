"""Every YAML composes, is checked and builds; schemas and classes say the same."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import fake_hub
from tests.tasks import own_rows
from zolab import compose
from zolab.config import CONF_DIR, GROUPS, PARTS, TARGETS, all_keys, check_tree
from zolab.config.check import choice_name
from zolab.config.fields import AUTO, TARGET

FILES = sorted(CONF_DIR.rglob("*.yaml"))


def _choice(file: Path) -> tuple[str, str]:
    """Group and name; the folders below `experiment` are part of the name."""
    path = file.relative_to(CONF_DIR).with_suffix("")
    if path.parts[0] == "experiment":
        return "experiment", path.relative_to("experiment").as_posix()
    return path.parent.as_posix(), path.name


CHOICES = [_choice(file) for file in FILES if file.parent != CONF_DIR]
#: What the runner hands to a class besides the keys of its YAML.
CONTEXT = {"params", "mask", "model", "seed", "seeds", "args", "kwargs"}
#: What a method of its own fixes, so that its YAML has no key for it.
FIXED = {
    "zolab.optim.MeZOSVRG": {"estimator", "rule"},
    "zolab.optim.Conservative": {"weight_decay", "rule"},
    "zolab.optim.ForwardGrad": {"eps", "estimator"},
}


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the YAMLs of hub models name, as if downloaded."""
    cache = tmp_path_factory.mktemp("hub")
    for file in (CONF_DIR / "model").glob("*.yaml"):
        model = yaml.safe_load(file.read_text())
        if "/" in model["path"]:
            fake_hub.stub(cache, model["path"], model["shape"])
    return cache


@pytest.fixture(autouse=True)
def hub_cache(filled_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.use(filled_cache, monkeypatch)


def _needs(group: str, name: str, folder: Path) -> list[str]:
    if (group, name) == ("optimizer/rule", "factor_momentum"):
        return ["optimizer/direction=lazy_low_rank"]
    if group == "task":
        return [f"task.path={own_rows.write(name, folder / 'data')}", *own_rows.own_data(name)]
    if group == "experiment" and "/" in name:
        chosen = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())["defaults"]
        (task,) = (entry["override /task"] for entry in chosen if "override /task" in entry)
        return [f"task.path={own_rows.write(task, folder / 'data')}"]
    return []


def _keys(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict) or prefix in ("model.config.", "model.shape."):
        return {prefix.rstrip(".")}
    return set().union(*(_keys(value, f"{prefix}{name}.") for name, value in tree.items()), set())


def _locate(target: str) -> type:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments(cls: type) -> set[str]:
    """Names of a constructor's arguments, with those of the class its `**options` go to."""
    taken = set(inspect.signature(cls).parameters)
    if "options" in taken:
        taken |= set(inspect.signature(cls.__base__).parameters)
    return taken - {"options"}


def test_every_group_has_a_folder_and_every_folder_a_group() -> None:
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF_DIR).as_posix())
def test_yaml_begins_with_what_it_is_and_a_command_that_composes(
    file: Path, tmp_path: Path
) -> None:
    rows = own_rows.write(file.stem if file.parent.name == "task" else "sst2", tmp_path / "data")
    lines = file.read_text().splitlines()
    if lines[0] == "# @package _global_":
        lines = lines[1:]
    header = [line for line in lines[: lines.index(next(x for x in lines if x[:1] != "#"))]]
    commands = [line.removeprefix("#   zolab") for line in header if line.startswith("#   zolab")]
    assert len(header) > len(commands) > 0
    for command in commands:
        words = shlex.split(command.replace("=DIR", f"={rows}").replace("=NAME", "=x"))
        multirun = "-m" in words
        overrides = compose.prepare_overrides(word for word in words if word != "-m")
        if multirun:
            overrides = [text.partition(",")[0] for text in overrides]
        overrides += _needs(*_choice(file), tmp_path) if "experiment/" in str(file) else []
        compose.check(compose.compose(overrides))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_yaml_composes_and_spells_out_every_key(group: str, name: str, tmp_path: Path) -> None:
    config = compose.compose([f"{group}={name}", *_needs(group, name, tmp_path)])
    cell = compose.check(config)
    tree = compose.resolve(config)
    del tree["grid"]
    assert _keys(tree) == _keys(cell)
    from_hub = "/" in cell["model"]["path"] and cell["model"]["init"] == "pretrained"
    assert cell["model"]["revision"] == (fake_hub.COMMIT if from_hub else None)
    assert check_tree(cell) == {**cell, "grid": None}  # checking a checked cell changes nothing
    assert compose.run_id(cell) == compose.run_id(check_tree(cell))


def test_defaults_of_the_schema_are_those_of_the_yaml() -> None:
    cell = compose.check(compose.compose())
    bare = {
        "model": {"name": "opt-prompt-2m", "path": "opt-prompt-2m"},
        "task": {
            "kind": "classification",
            "name": "uci_sent",
            "path": "uci_sent",
            "template": "{sentence} It was",
            "label_words": [" terrible", " great"],
            "masked": {"template": "{sentence} It was {mask}.", "max_length": 128},
        },
        "optimizer": {"_target_": "zolab.optim.ZeroOrder"},
    }
    assert check_tree(bare) == {**cell, "grid": None}


@pytest.mark.parametrize("target", [target for target in TARGETS if target != AUTO])
def test_schema_names_the_arguments_of_its_class(target: str) -> None:
    cls = _locate(target)
    named = {f.name for f in dataclasses.fields(TARGETS[target]) if not f.metadata.get("label")}
    taken = _arguments(cls)
    assert named <= taken
    assert taken - named <= CONTEXT | FIXED.get(target, set())


@pytest.mark.parametrize(
    ("group", "name"),
    [(g, n) for g, n in CHOICES if g.startswith("optimizer/") or g == "sparsity"],
)
def test_part_builds(group: str, name: str, tmp_path: Path) -> None:
    node = compose.check(compose.compose([f"{group}={name}", *_needs(group, name, tmp_path)]))
    for key in group.split("/"):
        node = node[key]
    part = compose.build(node)
    if node["_target_"] == AUTO:
        assert part is None
        return
    assert type(part) is _locate(node["_target_"])
    for key, value in node.items():
        held = getattr(part, key, None)
        if isinstance(held, int | float | str) and not isinstance(held, type):
            assert key == "name" or held == value


@pytest.mark.parametrize("name", sorted(n for g, n in CHOICES if g == "optimizer"))
def test_optimizer_builds(name: str) -> None:
    node = compose.check(compose.compose([f"optimizer={name}"]))["optimizer"]
    cls = _locate(node["_target_"])
    import torch

    model = torch.nn.Linear(3, 2)
    context = {"params": list(model.named_parameters()), "model": model, "seed": 3}
    taken = _arguments(cls)
    made = compose.build(node, **{key: context[key] for key in context if key in taken})
    assert type(made) is cls
    if isinstance(made, torch.optim.Optimizer):
        assert made.param_groups[0]["lr"] == node["lr"]
        # the very parameters of the model, not copies that Hydra made of them
        assert made.param_groups[0]["params"][0] is model.weight


def test_optimizer_takes_parts_from_yaml() -> None:
    import torch

    from zolab.optim import Dense, Momentum, RandomMask

    cell = compose.check(
        compose.compose(
            [
                *("optimizer=mezo_momentum", "optimizer.rule.beta=0.5", "sparsity=random"),
                *("optimizer.estimator.num_probes=3", "sparsity.sparsity=0.25"),
            ]
        )
    )
    mask = compose.build(cell["sparsity"])
    made = compose.build(
        cell["optimizer"], torch.nn.Linear(3, 2).named_parameters(), mask=mask, seed=1
    )
    assert isinstance(mask, RandomMask)
    assert isinstance(mask, Dense)
    assert made.mask is mask
    assert mask.sparsity == 0.25
    assert isinstance(made.rule, Momentum)
    assert made.rule.beta == 0.5
    assert made.estimator.num_probes == 3


def test_demo_grid_holds_the_methods_of_the_table() -> None:
    config = compose.compose(["experiment=demo"])
    cells = []
    for block in compose.resolve(config)["grid"]:
        for optimizer in _list(block["optimizer"]):
            for sparsity in _list(block.get("sparsity", "none")):
                overrides = [f"optimizer={optimizer}", f"sparsity={sparsity}"]
                overrides += [
                    f"{key}={value}"
                    for key, value in block.items()
                    if key not in ("optimizer", "sparsity", "seed")
                ]
                cell = compose.check(compose.compose(["train=demo", *overrides]))
                # Zero-shot does not depend on the seed: once is enough.
                trains = cell["optimizer"]["_target_"] != "zolab.baselines.ZeroShot"
                assert block.get("seed", [0]) == ([0, 1, 2] if trains else [0])
                cells.append(cell)
    found = {(cell["optimizer"]["name"], cell["sparsity"]["name"]) for cell in cells}
    assert found == {
        ("zero_shot", "none"),
        ("zero_shot_calibrated", "none"),
        ("mezo", "none"),
        ("mezo", "small_weights"),
        ("mezo", "random"),
        ("mezo", "large_weights"),
        ("adamw", "none"),
    }
    zeroth = [cell for cell in cells if cell["optimizer"]["name"] == "mezo"]
    # seconds compare only within one placement
    assert len({cell["optimizer"]["placement"]["_target_"] for cell in zeroth}) == 1
    assert {cell["train"]["steps"] for cell in zeroth} == {800}
    assert {c["sparsity"]["sparsity"] for c in zeroth if "sparsity" in c["sparsity"]} == {0.75}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_every_key_of_the_design_exists() -> None:
    keys = set(all_keys())
    assert keys >= {
        *("run_root", "seed", "model.path", "model.dtype", "task.path", "train.steps"),
        *("train.batch_size", "train.micro_batch_size", "train.eval_every"),
        *("train.checkpoint_minutes", "optimizer.lr", "optimizer.eps", "sparsity.sparsity"),
        *("sweep.wait", "sweep.retry", "sweep.force", "sweep.dry_run"),
    }
    assert {"optimizer/placement", "optimizer/direction"} <= set(GROUPS)


def test_no_key_hides_a_method_of_a_config() -> None:
    forbidden = {"update", "items", "keys", "values", "get", "pop", "copy"}
    assert not forbidden & {key.rpartition(".")[2] for key in all_keys()}


def test_every_option_says_what_it_is() -> None:
    classes = {cls for _, choices in PARTS.values() for cls in choices.values()}
    for cls in classes:
        assert cls.__doc__
        for field in dataclasses.fields(cls):
            assert field.metadata["help"]


def test_choices_are_named_as_their_yaml_is() -> None:
    for slot, (chooser, choices) in PARTS.items():
        for choice, cls in choices.items() if chooser == TARGET or slot == "launcher" else ():
            assert (slot.replace(".", "/"), choice_name(choice, cls)) in CHOICES
