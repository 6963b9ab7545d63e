"""Presets of hub models: their shapes have the sizes their makers published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zolab import compose
from zolab.config import CONF_DIR
from zolab.errors import UserError
from zolab.models.load import check_dtype, load_model, pick_device
from zolab.models.shapes import build_empty, shape_config, size_of

#: Parameters, tied ones once. Where all digits stand, they are the sum over the tensors of the
#: published weights; the others are the sizes that the papers print.
PUBLISHED = {
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1.3b": 1_315_758_080,
    "opt_2.7b": 2_651_596_800,
    "opt_6.7b": 6_658_473_984,
    "opt_13b": 12_853_473_280,
    "opt_30b": 29_974_540_288,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_30b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3.1_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3.1_70b": 70_553_706_496,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0.3": 7_248_023_552,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "qwen2.5_72b": 72_706_203_648,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "phi_1.5": 1_418_270_720,
    "phi_2": 2_779_683_840,
    "phi_3_mini": 3_821_079_552,
    "phi_4": 14_659_507_200,
    "opt_66b": "66B",
    "opt_175b": "175B",
    "roberta_base": "125M",
    "roberta_large": "355M",
}
UNITS = {"M": 1e6, "B": 1e9}


def presets() -> dict[str, dict[str, Any]]:
    files = (CONF_DIR / "model").glob("*.yaml")
    read = {file.stem: yaml.safe_load(file.read_text()) for file in files}
    return {name: node for name, node in read.items() if node["shape"]}


PRESETS = presets()


def test_every_preset_has_a_published_size() -> None:
    assert PRESETS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shape_has_the_published_size(name: str) -> None:
    total = size_of(PRESETS[name]["shape"], PRESETS[name]["kind"]).total
    expected = PUBLISHED[name]
    if isinstance(expected, int):
        assert total == expected
    else:
        # the papers round to whole millions or billions
        assert round(total / UNITS[expected[-1]]) == int(expected[:-1])


@pytest.mark.parametrize("name", ["opt_350m", "gemma3_270m", "roberta_base", "qwen3_0.6b"])
def test_size_from_two_blocks_is_that_of_the_whole(name: str) -> None:
    node = PRESETS[name]
    model = build_empty(shape_config(node["shape"]), node["kind"])
    size = size_of(node["shape"], node["kind"])
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.embedding == model.get_input_embeddings().weight.numel()
    assert size.num_layers == model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["opt_125m", "roberta_base"])
def test_random_weights_of_a_preset_need_no_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import fake_hub

    fake_hub.use(tmp_path, monkeypatch)  # an empty cache
    small = ["++model.config.num_hidden_layers=1", "++model.config.intermediate_size=8"]
    if name.startswith("opt"):
        small[1] = "++model.config.ffn_dim=8"
    given = [f"model={name}", "model.init=random", "model.device=cpu", *small]
    cell = compose.check(compose.compose(given))
    assert cell["model"]["revision"] is None
    loaded = load_model(cell["model"], 0)
    assert loaded.model.config.hidden_size == 768
    assert loaded.model.config.num_hidden_layers == 1
    assert len(loaded.tokenizer) <= loaded.model.get_input_embeddings().weight.shape[0]
    with pytest.raises(UserError, match="not in the cache of the hub"):
        compose.check(compose.compose([f"model={name}"]))


def test_shape_names_a_cell_only_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import fake_hub

    fake_hub.fill(fake_hub.use(tmp_path, monkeypatch))

    def run_id(*overrides: str) -> str:
        return compose.run_id(compose.check(compose.compose(["model=opt_125m", *overrides])))

    other = "model.shape.ffn_dim=3000"
    assert run_id() == run_id(other)
    assert run_id("model.init=random") != run_id("model.init=random", other)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model_type": "opt", "hidden_sise": 8}, "model.shape.hidden_sise = 8: OPTConfig has no"),
        ({"model_type": "opf"}, "model.shape.model_type = 'opf': unknown to transformers; did you"),
        ({"hidden_size": 8}, "model.shape: no model_type"),
    ],
)
def test_wrong_shape_is_refused(shape: dict[str, Any], message: str) -> None:
    tree = compose.resolve(compose.compose(["model.path=a/b", "model.init=random"]))
    tree["model"]["shape"] = shape
    for refuse in (lambda: compose.check(tree), lambda: shape_config(shape)):
        with pytest.raises(UserError) as caught:
            refuse()
        assert message in str(caught.value)


def test_dtype_that_a_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name in ("float32", "bfloat16", "float16"):
        check_dtype(name, pick_device("cpu"))

    def no_half(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch, "softmax", no_half)
    with pytest.raises(UserError, match=r"model\.dtype = 'float16': cpu does not compute in it"):
        check_dtype("float16", pick_device("cpu"))


def test_settings_that_transformers_refuses_are_told_with_their_key() -> None:
    model = compose.resolve(compose.compose(["model.device=cpu"]))["model"]
    with pytest.raises(UserError, match=r"^model\.attn_implementation = 'flash_attention_2'"):
        load_model({**model, "attn_implementation": "flash_attention_2"}, 0)
    with pytest.raises(UserError, match=r"^model\.device_map = 'everywhere'"):
        load_model({**model, "device_map": "everywhere"}, 0)


def test_device_map_and_attention_reach_the_model() -> None:
    model = compose.resolve(compose.compose(["model.device=cpu"]))["model"]
    loaded = load_model({**model, "device_map": "cpu", "attn_implementation": "eager"}, 0)
    assert loaded.model.config._attn_implementation == "eager"
    assert {p.device.type for p in loaded.model.parameters()} == {"cpu"}
