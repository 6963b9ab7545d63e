"""Prefix tuning: trained keys and values before those of the text, in every attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zolab.errors import UserError
from zolab.models.tuning.base import TASK_TYPES, Tuning, freeze_base, write_adapter
from zolab.models.tuning.inputs import Inputs, transformer_of


class Prefix(Tuning):
    """m keys and values per layer, straight parameters, from real activations at the start.

    Source: prefix tuning (arXiv 2101.00190), eq. 2, without its reparametrisation; m = 5 and the
    start of MeZO (arXiv 2305.17333, appendix E.5): m random vocabulary tokens pass through the
    pretrained model and each layer's keys and values become its prefix. The text takes the
    positions behind the prefix, as in peft, so that an exported adapter gives the same scores; the
    official program of MeZO leaves the positions of the text as they were.

    peft's own module is not used because it wraps the model and gives all parameters other names,
    keeps one matrix for all layers (masks and methods that work by layer would see one), takes
    no masked model, and starts from random numbers.

    Args:
        num_tokens: m.
        init: "activations" or "random".
    """

    kind = "prefix"
    adapter_format = "peft"
    merges = False

    def __init__(self, num_tokens: int = 5, init: str = "activations") -> None:
        self.num_tokens = self.num_positions = num_tokens
        self.init = init

    def apply(self, model: nn.Module, num_words: int) -> None:
        keys_values = _activations(model, self.num_tokens, num_words)
        encoder = PrefixEncoder(model, keys_values)
        if self.init == "random":
            for layer in encoder.layers:
                nn.init.normal_(layer.weight, std=0.02)
        model.add_module("prefix_tuning", encoder)
        freeze_base(model)

    def save_adapter(self, model: nn.Module, out: Path, base: str, kind: str) -> None:
        encoder: PrefixEncoder = model.get_submodule("prefix_tuning")
        if len(set(encoder.shapes)) != 1:
            raise UserError(
                "model.tuning.kind = 'prefix': layers of this model have keys of different "
                "shapes, which the format of peft cannot hold"
            )
        heads, width = encoder.shapes[0]
        config = {
            "peft_type": "PREFIX_TUNING",
            "task_type": TASK_TYPES[kind],
            "base_model_name_or_path": base,
            "inference_mode": True,
            "num_virtual_tokens": self.num_tokens,
            "num_layers": len(encoder.layers),
            "num_attention_heads": heads,
            "token_dim": heads * width,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
        }
        whole = torch.cat([layer.weight for layer in encoder.layers], dim=1)
        write_adapter(out, config, {"prompt_embeddings": whole})


class PrefixEncoder(nn.Module):
    """Puts keys and values before the text of every forward.

    Each layer's lie in an embedding of m rows that is looked up once per row of the batch, so that
    a doubled batch reads the halves of `Paired` like any other rows.

    Args:
        model: gets a hook on its transformer.
        keys_values: per layer, keys and values, each (heads, m, width).
    """

    def __init__(self, model: nn.Module, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.shapes = [(keys.shape[0], keys.shape[2]) for keys, _ in keys_values]
        self.num_tokens = keys_values[0][0].shape[1]
        self.layers = nn.ModuleList()
        for pair in keys_values:
            rows = torch.cat([t.transpose(0, 1).flatten(1) for t in pair], dim=1)
            self.layers.append(nn.Embedding.from_pretrained(rows.float().clone(), freeze=False))
        self._config, self._dtype = model.config.get_text_config(), model.dtype
        backbone = transformer_of(model)
        inputs = Inputs(backbone, self.num_tokens)
        backbone.register_forward_pre_hook(
            lambda _, args, kwargs: ((), self._before(inputs, args, kwargs)), with_kwargs=True
        )
        backbone.register_forward_hook(lambda _, args, out: self._behind(out))
        self._private = False

    def forward(self, num_rows: int, cache: Any = None) -> Any:
        """The prefix for so many rows in a cache of transformers, the given one or a new one."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._config) if cache is None else cache
        for number, layer in enumerate(self.layers):
            heads, width = self.shapes[number]
            index = torch.arange(self.num_tokens, device=layer.weight.device)
            rows = layer(index.expand(num_rows, -1)).to(self._dtype)
            both = rows.view(num_rows, self.num_tokens, 2, heads, width).permute(2, 0, 3, 1, 4)
            cache.update(both[0], both[1], number)
        return cache

    def _before(self, inputs: Inputs, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = inputs.shifted(args, kwargs)
        cache = given.get("past_key_values")
        self._private = cache is None and given.get("use_cache") is False
        if cache is None or cache.get_seq_length() == 0:
            given["past_key_values"] = self(inputs.num_rows(given), cache)
        return given

    def _behind(self, out: Any) -> Any:
        """Nobody asked for a cache, so nobody gets one to go on with."""
        if self._private and getattr(out, "past_key_values", None) is not None:
            out.past_key_values = None
        return out


@torch.no_grad()
def _activations(model: nn.Module, num_tokens: int, num_words: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values that random vocabulary tokens leave in each layer."""
    from transformers import DynamicCache

    backbone = transformer_of(model)
    Inputs(backbone, num_tokens).require("past_key_values", "prefix")
    words = min(num_words, model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(words, (1, num_tokens)).to(model.get_input_embeddings().weight.device)
    cache = DynamicCache(config=model.config.get_text_config())
    try:
        backbone(input_ids=ids, past_key_values=cache, use_cache=True)
        pairs = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        whole = len(pairs) > 0 and all(k.shape[1] == num_tokens for k, _ in pairs)
    except (AttributeError, TypeError, IndexError, KeyError, RuntimeError, ValueError):
        whole = False
    if not whole:
        raise UserError(
            f"model.tuning.kind = 'prefix': {type(model).__name__} leaves no past keys and values "
            "in every layer, so there is no attention to put a prefix before; use lora or prompt"
        )
    return pairs
