"""Values and keys: converted to what the schema says, or refused in one line."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

from zolab import compose
from zolab.config import check_tree
from zolab.errors import UserError


@functools.cache
def _composed(*overrides: str) -> dict[str, Any]:
    return compose.resolve(compose.compose(overrides))


def _tree(*overrides: str) -> dict[str, Any]:
    """A composed tree to change at will; composing takes longer than all the rest of a test."""
    return copy.deepcopy(_composed(*overrides))


def test_values_are_converted_to_declared_types() -> None:
    overrides = ["optimizer.lr=1", "optimizer.eps='1e-4'", "train.steps=1e3", "seed='7'"]
    cell = compose.check(compose.compose(overrides))
    assert cell["optimizer"]["lr"] == 1.0
    assert type(cell["optimizer"]["lr"]) is float
    assert cell["optimizer"]["eps"] == 1e-4
    assert cell["train"]["steps"] == 1000
    assert type(cell["train"]["steps"]) is int
    assert cell["seed"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.lr": "abc"}, "optimizer.lr = 'abc': expected a number >= 0"),
        ({"optimizer.lr": -1}, "optimizer.lr = -1: expected a number >= 0"),
        ({"optimizer.lr": float("nan")}, "optimizer.lr = nan: expected a number >= 0 (it is not"),
        ({"optimizer.lr": float("inf")}, "optimizer.lr = inf"),
        ({"optimizer.lr": True}, "optimizer.lr = True: expected a number >= 0"),
        ({"optimizer.lr": None}, "optimizer.lr = None: expected a number >= 0"),
        ({"optimizer.lr": [1]}, "optimizer.lr = [1]: expected a number >= 0"),
        ({"optimizer.eps": 0}, "optimizer.eps = 0: expected a number > 0"),
        ({"optimizer.lrr": 1}, "optimizer.lrr = 1: unknown key; did you mean 'lr'?"),
        (
            {"optimizer.direction.nois": "gauss"},
            "optimizer.direction.nois = 'gauss': unknown key; did you mean 'noise'?",
        ),
        ({"lr": 1}, "lr = 1: unknown key; did you mean 'optimizer.lr'?"),
        ({"trian": {}}, "trian = {}: unknown key; did you mean 'train'?"),
        ({"optimizer.direction.noise": "gaus"}, "did you mean 'gauss'?"),
        (
            {"optimizer._target_": "zolab.optim.ZeroOder"},
            "optimizer._target_ = 'zolab.optim.ZeroOder': expected one of zolab.optim.ZeroOrder",
        ),
        ({"optimizer._target_": "os.system"}, "a class listed in trusted_targets"),
        ({"optimizer._partial_": True}, "optimizer._partial_ = True: unknown key"),
        ({"optimizer": "mezo"}, "optimizer = 'mezo': expected a section"),
        ({"optimizer": {}}, "optimizer._target_ must be given"),
        ({"train": None}, "train = None: expected a section"),
        ({"train.steps": -1}, "train.steps = -1: expected a whole number >= 0"),
        ({"train.steps": 1.5}, "train.steps = 1.5: expected a whole number >= 0"),
        ({"train.batch_size": 0}, "train.batch_size = 0: expected a whole number >= 1"),
        ({"train.eval_every": 0}, "train.eval_every = 0: expected a whole number >= 1"),
        ({"train.micro_batch_size": 17}, "at most train.batch_size = 16"),
        ({"train.lr_schedule": "cosine"}, "expected one of constant, linear"),
        ({"tracking.wandb": "yes"}, "tracking.wandb = 'yes': expected true or false"),
        ({"tracking.tags": "a"}, "tracking.tags = 'a': expected a list of texts"),
        ({"tracking.wandb": False, "tracking.mode": "online"}, "nothing would go online"),
        ({"model.dtype": "fp16"}, "expected one of float32, bfloat16, float16"),
        ({"model.device": "tpu"}, "model.device = 'tpu': expected auto, cpu, cuda or cuda:N"),
        ({"model.config": [1]}, "model.config = [1]: expected a mapping"),
        ({"model.config": {"x": float("nan")}}, "a number that is not finite"),
        ({"task.label_words": [True, False]}, "put it in quotes"),
        ({"task.label_words": [" a", " a"]}, "expected at least two different words"),
        ({"task.template": "no field"}, "at least one field of the data in braces"),
        ({"task.template": "{a"}, "task.template = '{a'"),
        ({"task.template": "{a:.2f}"}, "'.2f' is not a filter"),
        ({"task.path": "???"}, "task.path must be given"),
        ({"task.kind": "regression"}, "task.kind = 'regression': expected one of classification"),
        ({"seed": -1}, "seed = -1: expected a whole number >= 0"),
        ({"seed": 2**63}, "seed = 9223372036854775808: expected"),
        ({"run_root": ""}, "run_root = ''"),
        ({"grid": [3]}, "grid[0] = 3: expected a mapping"),
        ({"launcher.threads": 0}, "launcher.threads = 0: expected a whole number >= 1"),
        ({"launcher.partition": "gpu"}, "launcher.partition = 'gpu': unknown key"),
        ({"sweep.retry": "some"}, "expected one of none, failed, cancelled, all"),
    ],
)
def test_wrong_value_is_refused_with_key_value_and_what_is_allowed(
    change: dict[str, Any], message: str
) -> None:
    tree = _tree()
    for key, value in change.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[name] = value
    with pytest.raises(UserError) as caught:
        check_tree(tree)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan"), "dense"])
@pytest.mark.parametrize("name", ["small_weights", "large_weights", "random"])
def test_sparsity_is_a_share_below_one(name: str, value: Any) -> None:
    tree = _tree(f"sparsity={name}")
    tree["sparsity"]["sparsity"] = value
    with pytest.raises(UserError, match=r"sparsity\.sparsity = .*: expected a number >= 0 and < 1"):
        check_tree(tree)


@pytest.mark.parametrize("optimizer", ["adamw", "zero_shot", "zero_shot_calibrated"])
def test_method_without_a_masked_form_refuses_a_mask(optimizer: str) -> None:
    with pytest.raises(UserError, match="has no masked form"):
        compose.check(compose.compose([f"optimizer={optimizer}", "sparsity=random"]))


def test_key_of_another_choice_names_the_choices_that_have_it() -> None:
    tree = _tree()
    tree["optimizer"]["rule"]["beta"] = 0.5
    with pytest.raises(UserError, match="choose optimizer/rule=momentum or factor_momentum to"):
        check_tree(tree)
    tree = _tree()
    tree["launcher"]["partition"] = "gpu"
    with pytest.raises(UserError, match="choose launcher=slurm to have it"):
        check_tree(tree)


def test_key_of_another_method_is_refused() -> None:
    overrides = compose.prepare_overrides(["optimizer=zero_shot", "optimizer.lr=1"])
    with pytest.raises(
        UserError, match=r"optimizer\.lr = 1: unknown key; choose optimizer=mezo,.*ZeroShot"
    ):
        compose.check(compose.compose(overrides))
