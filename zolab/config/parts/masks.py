"""Which weights move: masks."""

# `option` returns dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option


@dataclass
class Dense:
    """Every weight is perturbed and trained."""

    name: str = option("none", help="mask name in tables", label=True)


@dataclass
class _Sparse:
    name: str = option(help="mask name in tables", label=True)
    sparsity: float = option(
        0.75, min=0, below=1, help="share of each matrix's weights that is FROZEN"
    )
    vectors: str = option(
        "dense",
        choices=("dense", "frozen", "masked"),
        help="what 1-D tensors do: all train, none, or masked like matrices",
    )


@dataclass
class _Magnitude(_Sparse):
    threshold: str = option(
        "tensor",
        choices=("tensor", "global"),
        help="a magnitude quantile for each tensor, or one for all",
    )
    refresh_every: int = option(
        0, min=0, help="steps between new thresholds; 0: those of the initial weights"
    )


@dataclass
class SmallWeights(_Magnitude):
    """Only the smallest weights of each tensor move (Sparse-MeZO)."""

    name: str = option("small_weights", help="mask name in tables", label=True)


@dataclass
class LargeWeights(_Magnitude):
    """Only the largest weights of each tensor move (control for Sparse-MeZO)."""

    name: str = option("large_weights", help="mask name in tables", label=True)


@dataclass
class RandomMask(_Sparse):
    """A random choice of weights moves (control for Sparse-MeZO)."""

    name: str = option("random", help="mask name in tables", label=True)
    resample: str = option(
        "run", choices=("run", "step"), help="one mask per run, or new ones as it goes on"
    )
    resample_every: int = option(1, min=1, help="steps a mask lasts under resample=step")


@dataclass
class LayerMask:
    """A random share of the layers moves in each step (LeZO)."""

    name: str = option("layers", help="mask name in tables", label=True)
    sparsity: float = option(0.75, min=0, below=1, help="share of the layers that is FROZEN")
    always_active: list[str] = option(
        ["embed", "head", "final_norm"], help="what outside the layers moves in every step"
    )
