"""MeZO on a share of the coordinates: Sparse-MeZO, its controls, gradient pruning and LeZO."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.masks import LargeWeights, LayerMask, RandomMask, SmallWeights
from zolab.optim.zero_order import ZeroOrder


def SparseMeZO(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    sparsity: float = 0.75,
    vectors: str = "dense",
    threshold: str = "tensor",
    refresh_every: int = 0,
    **options: Any,
) -> ZeroOrder:
    """Sparse-MeZO (arXiv 2402.15751): MeZO on ẑ = m ⊙ z, m = 1 where |θ| <= h.

    two_sided × gaussian × small_weights × sgd; h per tensor from θ0, `sparsity` the share frozen;
    `threshold` and `refresh_every` choose other h, see `SmallWeights`.
    2 forwards a step; no state with `Paired`, one bit a weight with `InPlace`.
    YAML: optimizer=mezo sparsity=small_weights.
    """
    return ZeroOrder(
        params, lr, eps, mask=SmallWeights(sparsity, vectors, threshold, refresh_every), **options
    )


def LeZO(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    sparsity: float = 0.75,
    **options: Any,
) -> ZeroOrder:
    """LeZO (arXiv 2410.09823): MeZO on a random share of the layers, drawn anew in each step.

    two_sided × gaussian × layers × sgd; `sparsity` is the share of layers frozen; embeddings,
    head and final norm always move (ours). 2 forwards a step, no state: the choice is a function
    of (seed, step). YAML: optimizer=mezo sparsity=layers.
    """
    return ZeroOrder(params, lr, eps, mask=LayerMask(sparsity), **options)


def RMeZO(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    sparsity: float = 0.75,
    vectors: str = "dense",
    resample: str = "run",
    resample_every: int = 1,
    **options: Any,
) -> ZeroOrder:
    """R-MeZO (arXiv 2402.15751, control): MeZO on a random mask of Sparse-MeZO's density.

    two_sided × gaussian × random × sgd; `sparsity` is the share frozen. resample="step" draws a
    new mask every `resample_every` steps: ZO-Bench's gradient pruning (arXiv 2402.11592), at the
    density it meant. 2 forwards a step; state one bit a weight, rebuilt from the seed.
    YAML: optimizer=mezo sparsity=random.
    """
    return ZeroOrder(
        params, lr, eps, mask=RandomMask(sparsity, vectors, resample, resample_every), **options
    )


def LargeWeightsMeZO(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    sparsity: float = 0.75,
    vectors: str = "dense",
    threshold: str = "tensor",
    refresh_every: int = 0,
    **options: Any,
) -> ZeroOrder:
    """Sparse-MeZO turned around (arXiv 2402.15751, control): the large weights move, |θ| >= h.

    two_sided × gaussian × large_weights × sgd; `sparsity` is the share frozen. 2 forwards a step;
    no state with `Paired`, one bit a weight with `InPlace`.
    YAML: optimizer=mezo sparsity=large_weights.
    """
    return ZeroOrder(
        params, lr, eps, mask=LargeWeights(sparsity, vectors, threshold, refresh_every), **options
    )
