"""How many weights a model has and where, from the keys of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
#: Families whose output layer is the embedding unless their config says otherwise.
_TIED = ("opt", "gemma", "gemma2", "gemma3_text", "roberta")


@dataclass(frozen=True)
class Shape:
    """Numbers of a transformer.

    Attributes:
        hidden, ffn, layers, vocab, positions: widths and lengths.
        keys: width of the keys (and of the values) of a layer.
        gated: whether the feed-forward part has a gate beside its first matrix.
        block: weights of one layer.
        outside: weights of everything else: embeddings, norms, output layer.
        biases: those weights that are biases of a layer.
    """

    hidden: int
    ffn: int
    layers: int
    vocab: int
    positions: int
    keys: int
    gated: bool
    block: int
    outside: int
    biases: int

    @property
    def parameters(self) -> int:
        """All weights, tied ones once."""
        return self.layers * self.block + self.outside

    @property
    def largest(self) -> int:
        """Weights of the largest matrix of a layer."""
        return self.hidden * max(self.ffn, self.hidden)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The numbers of a config.json or `model.shape`; None for a family not known here."""
    family = config.get("model_type")
    try:
        if family == "opt":
            return _opt(config)
        if family == "roberta":
            return _roberta(config)
        if family == "phi":
            return _phi(config)
        if family in _LLAMA_LIKE:
            return _llama(config, family)
    except KeyError:
        return None
    return None


def _opt(config: Mapping[str, Any]) -> Shape:
    h, f, v = config["hidden_size"], config["ffn_dim"], config["vocab_size"]
    embed, positions = config.get("word_embed_proj_dim", h), config["max_position_embeddings"]
    biases = 4 * h + f + h
    block = 4 * h * h + 2 * h * f + biases + 4 * h
    outside = v * embed + (positions + 2) * h
    outside += 2 * h * embed if embed != h else 0
    outside += 2 * h if config.get("do_layer_norm_before", True) else 0
    return Shape(
        h, f, config["num_hidden_layers"], v, positions, h, False, block, outside, biases + 2 * h
    )


def _roberta(config: Mapping[str, Any]) -> Shape:
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    positions = config["max_position_embeddings"]
    biases = 4 * h + f + h
    block = 4 * h * h + 2 * h * f + biases + 4 * h
    outside = (v + positions + config.get("type_vocab_size", 1)) * h + 2 * h
    outside += h * h + h + 2 * h + v  # the output layer's own part; its matrix is the embedding
    return Shape(
        h,
        f,
        config["num_hidden_layers"],
        v,
        positions - 2,
        h,
        False,
        block,
        outside,
        biases + 2 * h,
    )


def _phi(config: Mapping[str, Any]) -> Shape:
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    biases = 4 * h + f + h
    block = 4 * h * h + 2 * h * f + biases + 2 * h
    outside = 2 * v * h + v + 2 * h
    positions = config["max_position_embeddings"]
    return Shape(
        h, f, config["num_hidden_layers"], v, positions, h, False, block, outside, biases + h
    )


def _llama(config: Mapping[str, Any], family: str) -> Shape:
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or h // heads
    keys = head * (config.get("num_key_value_heads") or heads)
    queries = head * heads
    biases = queries + 2 * keys if family == "qwen2" else 0
    norms = 4 if family in ("gemma2", "gemma3_text") else 2
    block = 2 * h * queries + 2 * h * keys + 3 * h * f + norms * h + biases
    block += 2 * head if family in ("qwen3", "gemma3_text") else 0
    tied = config.get("tie_word_embeddings", family in _TIED)
    outside = (1 if tied else 2) * v * h + h
    return Shape(
        h, f, config["num_hidden_layers"], v, config["max_position_embeddings"], keys, True,
        block, outside, biases,
    )  # fmt: skip
