"""Published methods as names for compositions; each equals the YAML of the same name (tested)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.directions import Gaussian
from zolab.optim.estimators import TwoSided
from zolab.optim.masks import Dense, SmallWeights
from zolab.optim.rules import Momentum, Sgd
from zolab.optim.zero_order import ZeroOrder


def MeZO(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, num_probes: int = 1, **options: Any
) -> ZeroOrder:
    """MeZO (arXiv 2305.17333, Algorithm 1): θ ← θ - η c z, c = (L(θ+εz) - L(θ-εz)) / 2ε.

    two_sided × gaussian × dense × sgd. 2n forwards a step, no state. `options` go to `ZeroOrder`.
    """
    return ZeroOrder(
        params,
        lr,
        eps,
        estimator=TwoSided(num_probes),
        direction=options.pop("direction", None) or Gaussian(),
        mask=Dense(),
        rule=Sgd(),
        **options,
    )


def MeZOMomentum(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, beta: float = 0.9, **options: Any
) -> ZeroOrder:
    """MeZO with momentum (arXiv 2305.17333, section 2.2): m ← β m + c z, θ ← θ - η m.

    two_sided × gaussian × dense × momentum. 2 forwards a step, state m: one float32 a weight.
    """
    return ZeroOrder(
        params,
        lr,
        eps,
        estimator=TwoSided(),
        direction=Gaussian(),
        mask=Dense(),
        rule=Momentum(beta),
        **options,
    )


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
    """
    return ZeroOrder(
        params,
        lr,
        eps,
        estimator=TwoSided(),
        direction=Gaussian(),
        mask=SmallWeights(sparsity, vectors, threshold, refresh_every),
        rule=Sgd(),
        **options,
    )
