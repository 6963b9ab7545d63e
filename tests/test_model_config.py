"""Keys of `model.config`: checked while planning, without torch, and when a model is loaded."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import fake_hub
from zolab import assets, compose
from zolab.errors import UserError
from zolab.models.keys import look_over_keys, read_keys
from zolab.models.load import load_model

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"num_hidden_layers": 1, "ffn_dim": 16}


@functools.cache
def composed() -> dict[str, Any]:
    return compose.resolve(compose.compose())


def _model(**changes: Any) -> dict[str, Any]:
    return {**composed()["model"], "device": "cpu", **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"hidden_sise": 10},
            "model.config.hidden_sise = 10: OPTConfig has no such key; did you mean 'hidden_size'?",
        ),
        ({"rope_theta": 1}, "model.config.rope_theta = 1: OPTConfig has no such key"),
        ({"dtype": "float16"}, "model.config.dtype = 'float16': set model.dtype instead"),
        ({"model_type": "gpt2"}, "the model at model.path is of type 'opt'"),
    ],
)
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_key_that_does_not_exist_is_refused(init: str, config: Any, message: str) -> None:
    model = _model(init=init, config=config)
    for refuse in (
        lambda: compose.check({**composed(), "model": model}),
        lambda: load_model(model, seed=0),
    ):
        with pytest.raises(UserError) as caught:
            refuse()
        assert message in str(caught.value)


def test_keys_that_exist_reach_the_model() -> None:
    model = _model(init="random", config={**SMALL, "model_type": "opt"})
    compose.check({**composed(), "model": model})
    loaded = load_model(model, seed=0)
    assert loaded.model.config.num_hidden_layers == 1
    assert loaded.model.config.ffn_dim == 16
    assert loaded.tokenizer is not None


def test_value_that_a_key_does_not_take_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^model\.config: .*hidden_size.*int.*str") as caught:
        load_model(_model(init="random", config={"hidden_size": "wide"}), seed=0)
    assert "\n" not in str(caught.value)


def test_keys_by_other_names_are_known() -> None:
    base = {"model_type": "gpt2", "written_by_hand": 1}
    look_over_keys({"hidden_size": 8, "n_embd": 8, "num_labels": 3, "written_by_hand": 2}, base)
    look_over_keys({"rope_theta": 1e4, "rope_scaling": {}}, {"model_type": "llama"})
    look_over_keys({"anything": 1}, {"model_type": "odd", "auto_map": {}})  # its own code decides
    look_over_keys({"anything": 1}, {"model_type": "unheard-of"})  # loading will say so
    with pytest.raises(UserError, match="unknown to transformers; did you mean 'gpt2'"):
        look_over_keys({"model_type": "gpt-2"}, None)


def test_every_key_of_the_embedded_model_is_known() -> None:
    stored = json.loads((assets.model_dir("opt-prompt-2m") / "config.json").read_text())
    odd = {"model_type", "_name_or_path"} | {key for key in stored if key.startswith("_")}
    assert set(stored) - odd <= set(read_keys("opt")["keys"])


def test_planning_looks_without_torch() -> None:
    code = (
        "import sys\n"
        "from zolab import compose\n"
        "from zolab.errors import UserError\n"
        "config = compose.compose(['++model.config.hidden_sise=10'])\n"
        "try:\n"
        "    compose.check(config)\n"
        "except UserError as error:\n"
        "    assert 'hidden_size' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('accepted')\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launchers'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_cached_hub_model_is_looked_over_and_loads_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.fill(fake_hub.use(tmp_path, monkeypatch))
    model = _model(path="facebook/opt-125m", config={"hidden_sise": 10})
    with pytest.raises(UserError, match="did you mean 'hidden_size'"):
        compose.check({**composed(), "model": model})
    cell = compose.check({**composed(), "model": {**model, "config": SMALL, "init": "random"}})
    assert cell["model"]["revision"] == fake_hub.COMMIT
    loaded = load_model(cell["model"], seed=0)
    assert loaded.model.config.num_hidden_layers == 1
    cell = compose.check({**composed(), "model": {**model, "config": {}}})
    assert load_model(cell["model"], seed=0).model.config.num_hidden_layers > 1
