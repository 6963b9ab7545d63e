"""The architecture of a model: from a preset, a folder or a hub cache, and its size in numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zolab.config.contents import uses_shape
from zolab.models.keys import look_over_keys

#: Other names of `num_hidden_layers` in configs of transformers.
_LAYERS = ("num_hidden_layers", "n_layer")


@dataclass(frozen=True)
class Size:
    """Numbers of parameters, tied ones counted once.

    Attributes:
        total: of the whole model.
        embedding: of the input embeddings (positions apart), which an output layer may share.
        layer: of one transformer block.
        num_layers: blocks.
    """

    total: int
    embedding: int
    layer: int
    num_layers: int


def model_shape(source: str, config: Mapping[str, Any]) -> Any:
    """The transformers config of a cell's model, with the keys of `model.config` replaced.

    Args:
        source: folder or hub name.
        config: the `model` section of a cell's config.

    Raises:
        UserError: the model's config has no such key.
    """
    from transformers import AutoConfig, PreTrainedConfig

    values, revision = config["config"], config.get("revision")
    if uses_shape(config):
        return shape_config({**config["shape"], **values})
    if values:  # planning looked already, unless the model was not there yet
        look_over_keys(values, PreTrainedConfig.get_config_dict(source, revision=revision)[0])
    return AutoConfig.from_pretrained(source, revision=revision, **values)


def shape_config(shape: Mapping[str, Any]) -> Any:
    """A transformers config from plain values with a `model_type`.

    Raises:
        UserError: no model_type, or a key that the config class of that type does not have.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    look_over_keys(shape, None, key="model.shape")
    values = dict(shape)
    return CONFIG_MAPPING[values.pop("model_type")](**values)


def build_empty(shape: Any, kind: str) -> nn.Module:
    """A model of transformers without memory for its weights (meta device).

    Args:
        shape: transformers config.
        kind: "causal" or "masked".
    """
    with torch.device("meta"):
        return auto_class(kind).from_config(shape)


def auto_class(kind: str) -> Any:
    """The class of transformers that loads models of a kind."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    return {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}[kind]


def size_of(shape: Mapping[str, Any], kind: str = "causal") -> Size:
    """Numbers of parameters of a plain shape, without loading or drawing a weight.

    Two models of one and two blocks are laid out on the meta device; all blocks are alike.

    Args:
        shape: `model.shape` or the content of a config.json.
        kind: "causal" or "masked".
    """
    return _size_of(json.dumps(dict(shape), sort_keys=True), kind)


@functools.cache
def _size_of(text: str, kind: str) -> Size:
    whole = shape_config(json.loads(text))
    name = next(key for key in _LAYERS if hasattr(whole, key))
    num_layers = int(getattr(whole, name))
    counts = []
    for layers in (1, 2):
        values = json.loads(text)
        # older spellings of the key must not come back through the config's attribute map
        values = {key: v for key, v in values.items() if key not in (*_LAYERS, "layer_types")}
        model = build_empty(shape_config({**values, name: layers}), kind)
        counts.append(sum(p.numel() for p in model.parameters()))
    layer = counts[1] - counts[0]
    embedding = model.get_input_embeddings().weight.numel()
    return Size(counts[0] + (num_layers - 1) * layer, embedding, layer, num_layers)
