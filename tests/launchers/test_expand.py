"""Expansion of sweeps, with a small conf folder and with nothing but strings."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from launchers.expand import cells_of, expand
from zolab.compose.repository import read_once
from zolab.errors import UserError

FILES = {
    "config": """
        defaults:
          - optimizer: mezo
          - sparsity: none
          - _self_
          - optional experiment: null
        run_root: runs
        seed: 0
        train: {steps: 10, tags: [a]}
        derived: ${optimizer.lr}
        grid: null
        launcher: {kind: local}
        sweep: {}
    """,
    "optimizer/mezo": "{name: mezo, lr: 1.0e-3, eps: 1.0e-3}",
    "optimizer/adamw": "{name: adamw, lr: 1.0e-2, beta: 0.9}",
    "sparsity/none": "{name: none}",
    "sparsity/small_weights": "{name: small_weights, sparsity: 0.5}",
    "sparsity/extra": "{extra: 1}",
    "experiment/blocks": """
        # @package _global_
        grid:
          - {optimizer: mezo, optimizer.lr: [1.0e-4, 2.0e-4]}
          - {optimizer: mezo, sparsity: small_weights, optimizer.lr: [3.0e-4, 4.0e-4]}
          - {optimizer: adamw, optimizer.lr: 5.0e-4, train.steps: 3}
    """,
    "experiment/params": """
        # @package _global_
        hydra: {sweeper: {params: {seed: "0,1", optimizer: [mezo, adamw]}}}
    """,
}


@pytest.fixture
def conf(tmp_path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())
    return tmp_path


@pytest.fixture
def cells(conf):
    """From overrides to (cells, labels, number of compositions)."""

    def run(*arguments, params=None, constant=()):
        with hydra.initialize_config_dir(str(conf), version_base="1.3", job_name="test"):
            loader = GlobalHydra.instance().hydra.config_loader
            master = hydra.compose("config", list(constant), return_hydra_config=True)
            counter = Counting(loader)
            found, labels = cells_of(counter, master, [*constant, *arguments], params, check)
            return found, labels, counter.compositions

    return run


def check(config) -> dict:
    cell = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    if cell["seed"] == 666:
        raise UserError("seed = 666: not allowed")
    return cell


class Counting:
    """A config loader that counts compositions."""

    def __init__(self, loader) -> None:
        self.get_group_options = loader.get_group_options
        self.loader = loader
        self.compositions = 0

    def load_sweep_config(self, master, overrides):
        self.compositions += 1
        return self.loader.load_sweep_config(master, overrides)


def points(*arguments, params=None, grid=None):
    groups = ("optimizer", "sparsity")
    found = expand(arguments, params, grid, lambda key: key in groups or "/" in key)
    return [
        (list(p.composed), {setting.key: setting.value for setting in p.values}, p.label)
        for p in found
    ]


def test_groups_are_composed_and_values_set():
    assert points("optimizer=mezo,adamw", "seed=0,1", "train.steps=5") == [
        (["optimizer=mezo", "train.steps=5"], {"seed": 0}, "optimizer=mezo seed=0"),
        (["optimizer=mezo", "train.steps=5"], {"seed": 1}, "optimizer=mezo seed=1"),
        (["optimizer=adamw", "train.steps=5"], {"seed": 0}, "optimizer=adamw seed=0"),
        (["optimizer=adamw", "train.steps=5"], {"seed": 1}, "optimizer=adamw seed=1"),
    ]


def test_no_sweep_is_one_cell():
    assert points() == [([], {}, "")]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=range(0,3)", [0, 1, 2]),
        ("seed=choice(3,1)", [3, 1]),
        ("seed=1e-4,2", [1e-4, 2]),
        ("seed='a,b',c", ["a,b", "c"]),
        ("seed=[1,2],[3]", [[1, 2], [3]]),
        ("seed={a:1},{a:2}", [{"a": 1}, {"a": 2}]),
        ("seed=null,true", [None, True]),
        ("++seed=1,2", [1, 2]),
    ],
)
def test_kinds_of_sweeps(text, values):
    assert [values_of["seed"] for _, values_of, _ in points(text)] == values


def test_lists_of_group_options():
    assert [p[0] for p in points("sparsity=[none,extra],none")] == [
        ["sparsity=[none,extra]"],
        ["sparsity=none"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1,2", "seed=3"], "seed is given twice"),
        (["seed=1", "+seed=3"], "seed is given twice"),
        (["seed=interval(0,1)"], "choice"),
        (["seed=range(3,3)"], "no cell"),
        (["launcher=local,slurm"], "launcher cannot be swept"),
        (["launcher.threads=1,2"], "launcher.threads cannot be swept"),
        (["run_root=a,b"], "run_root cannot be swept"),
        (["sweep.retry=none,all"], "sweep.retry cannot be swept"),
        (["seed"], "seed"),
    ],
)
def test_sweeps_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        points(*arguments)


def test_blocks_are_united_and_crossed_with_the_command_line():
    grid = [
        {"optimizer": "mezo", "optimizer.lr": [1, 2]},
        {"optimizer": ["adamw"], "optimizer.lr": 3, "train.tags": [["a,b", "c"]]},
    ]
    mezo, adamw = ["optimizer=mezo"], ["optimizer=adamw"]
    rest = {"optimizer.lr": 3, "train.tags": ["a,b", "c"]}
    shown = 'optimizer=adamw optimizer.lr=3 train.tags=["a,b", "c"]'
    assert points("seed=0,1", grid=grid) == [
        (mezo, {"optimizer.lr": 1, "seed": 0}, "optimizer=mezo optimizer.lr=1 seed=0"),
        (mezo, {"optimizer.lr": 1, "seed": 1}, "optimizer=mezo optimizer.lr=1 seed=1"),
        (mezo, {"optimizer.lr": 2, "seed": 0}, "optimizer=mezo optimizer.lr=2 seed=0"),
        (mezo, {"optimizer.lr": 2, "seed": 1}, "optimizer=mezo optimizer.lr=2 seed=1"),
        (adamw, {**rest, "seed": 0}, f"{shown} seed=0"),
        (adamw, {**rest, "seed": 1}, f"{shown} seed=1"),
    ]


def test_command_line_goes_before_blocks_and_blocks_before_params():
    found = points("a=9", params={"a": "1,2", "b": "3,4", "c": [5, 6]}, grid=[{"a": 7, "b": 8}])
    assert found == [
        (["a=9"], {"b": 8, "c": 5}, "c=5"),
        (["a=9"], {"b": 8, "c": 6}, "c=6"),
    ]


def test_strings_in_blocks_are_taken_as_they_are():
    (found,) = points(grid=[{"task.template": "{sentence}, it was"}])
    assert found[1] == {"task.template": "{sentence}, it was"}
    with pytest.raises(UserError, match=r"grid\[0\]"):
        points(grid=["optimizer=mezo"])
    with pytest.raises(UserError, match=r"sweep\.wait cannot"):
        points(grid=[{"sweep.wait": True}])


def test_cells_are_composed_once_per_combination_of_groups(cells):
    start = time.process_time()
    found, labels, compositions = cells("optimizer=mezo,adamw", "seed=range(0,100)")
    assert time.process_time() - start < 2.0
    assert (len(found), compositions) == (200, 2)
    assert [(c["optimizer"]["name"], c["seed"]) for c in found[98:102]] == [
        ("mezo", 98), ("mezo", 99), ("adamw", 0), ("adamw", 1),
    ]  # fmt: skip
    assert labels[101] == "optimizer=adamw seed=1"
    assert "hydra" not in found[0]


def test_copies_share_nothing_and_interpolations_follow(cells):
    found, _, compositions = cells("optimizer.lr=1,2", "train.tags=[x],[y,z]")
    assert compositions == 1
    assert [c["derived"] for c in found] == [1, 1, 2, 2]
    assert [(c["optimizer"]["lr"], c["train"]["tags"]) for c in found] == [
        (1, ["x"]), (1, ["y", "z"]), (2, ["x"]), (2, ["y", "z"]),
    ]  # fmt: skip


def test_constants_of_the_command_line_reach_every_cell(cells):
    found, labels, _ = cells("seed=0,1", constant=["train.steps=7", "+note='a b'"])
    assert [(c["train"]["steps"], c["note"]) for c in found] == [(7, "a b")] * 2
    assert labels == ["seed=0", "seed=1"]


def test_grid_of_an_experiment(cells):
    found, labels, compositions = cells("seed=0,1", constant=["experiment=blocks"])
    assert compositions == 3
    assert [(c["optimizer"]["name"], c["sparsity"]["name"], c["optimizer"]["lr"], c["seed"])
            for c in found] == [
        ("mezo", "none", 1e-4, 0), ("mezo", "none", 1e-4, 1),
        ("mezo", "none", 2e-4, 0), ("mezo", "none", 2e-4, 1),
        ("mezo", "small_weights", 3e-4, 0), ("mezo", "small_weights", 3e-4, 1),
        ("mezo", "small_weights", 4e-4, 0), ("mezo", "small_weights", 4e-4, 1),
        ("adamw", "none", 5e-4, 0), ("adamw", "none", 5e-4, 1),
    ]  # fmt: skip
    assert [c["train"]["steps"] for c in found] == [10] * 8 + [3] * 2
    assert not any("grid" in c for c in found)
    assert labels[-1] == "optimizer=adamw optimizer.lr=0.0005 train.steps=3 seed=1"


def test_files_read_once_compose_the_same(conf, monkeypatch):
    reads: list[str] = []
    inner = ConfigRepository.load_config
    monkeypatch.setattr(
        ConfigRepository,
        "load_config",
        lambda self, config_path: reads.append(config_path) or inner(self, config_path),
    )

    def configs(prepare):
        with hydra.initialize_config_dir(str(conf), version_base="1.3", job_name="test"):
            master = hydra.compose("config", ["experiment=blocks"], return_hydra_config=True)
            loader = prepare(GlobalHydra.instance().hydra.config_loader)
            reads.clear()
            # twice: what the first composition did to a file's config would show in the second
            first = ["optimizer=adamw", "+sparsity@other=small_weights", "seed=7", "train.steps=3"]
            texts = [first, ["optimizer=mezo"]] * 2
            found = [loader.load_sweep_config(master, text) for text in texts]
            for config in found:
                with open_dict(config):
                    config.pop("hydra")
            return found, [name for name in reads if name in FILES]

    plain, often = configs(lambda loader: loader)
    once, seldom = configs(read_once)
    assert [OmegaConf.to_yaml(c, sort_keys=True) for c in once] == [
        OmegaConf.to_yaml(c, sort_keys=True) for c in plain
    ]
    assert max(map(seldom.count, seldom)) == 1 < max(map(often.count, often))


def test_an_experiment_with_a_grid_cannot_be_one_of_several(cells):
    with pytest.raises(UserError, match="run them alone"):
        cells("experiment=params,blocks")


def test_params_of_an_experiment(cells):
    found, labels, compositions = cells(params={"seed": "0,1", "optimizer": ["mezo", "adamw"]})
    assert (len(found), compositions) == (4, 2)
    assert labels[-1] == "seed=1 optimizer=adamw"


def test_one_bad_cell_refuses_all_and_is_named(cells):
    with pytest.raises(UserError, match=r"cell optimizer=nix seed=0: .*'nix'.*mezo"):
        cells("optimizer=mezo,nix", "seed=0,1")
    with pytest.raises(UserError, match=r"^cell seed=666: seed = 666: not allowed"):
        cells("seed=1,666")
    with pytest.raises(UserError, match=r"^seed = 666: not allowed"):
        cells("seed=666")
