"""Which weights of a model train, and what is added to it for that, chosen by `kind`."""

# `option` returns dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option


@dataclass
class FullTuning:
    """All weights train."""


@dataclass
class LoraTuning:
    """Low-rank terms beside some linear layers train (LoRA, arXiv 2106.09685)."""

    r: int = option(8, min=1, help="rank of a term")
    alpha: float = option(16.0, above=0, help="a term counts alpha / r times")
    targets: list[str] | None = option(
        None, help="names of the layers that get one; null: query and value projections"
    )


@dataclass
class PrefixTuning:
    """Keys and values before the text train, in every attention (arXiv 2101.00190)."""

    num_tokens: int = option(5, min=1, help="keys and values per layer")
    init: str = option(
        "activations",
        choices=("activations", "random"),
        help="those of random vocabulary tokens passed through the model, or small random numbers",
    )


@dataclass
class PromptTuning:
    """Vectors before the embedded text train (arXiv 2104.08691)."""

    num_tokens: int = option(10, min=1, help="vectors")
    init: str = option(
        "vocabulary",
        choices=("vocabulary", "random"),
        help="embeddings of random vocabulary tokens, or small random numbers",
    )


@dataclass
class HeadTuning:
    """The output layer trains, with what stands between it and the transformer."""

    untie: bool = option(
        True, help="a tied output layer becomes a copy, so that the embedding stays as it is"
    )


@dataclass
class BiasTuning:
    """All biases train and nothing else (BitFit, arXiv 2106.10199)."""


@dataclass
class TensorTrainTuning:
    """Bottleneck adapters of tensor-train factors train (AdaZeta, arXiv 2406.18060)."""

    rank: int = option(5, min=1, help="rank between two factors")
    bottleneck: int = option(64, min=1, help="width inside an adapter")
    targets: list[str] | None = option(
        None,
        help="names of the layers that get one behind them; null: the last of each attention and "
        "of each feed-forward",
    )
