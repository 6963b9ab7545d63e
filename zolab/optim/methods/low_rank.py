"""Methods whose directions are low-rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.low_rank import LazyLowRank, Subspace
from zolab.optim.rules import FactorMomentum
from zolab.optim.zero_order import ZeroOrder


def SubZero(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    rank: int = 48,
    refresh_every: int = 1000,
    scale: bool = True,
    **options: Any,
) -> ZeroOrder:
    """SubZero (arXiv 2410.08989): W ← W - η c U Z Vᵀ, U and V orthonormal, Z (r, r) Gaussian.

    two_sided × subspace × dense × sgd; U, V by QR every `refresh_every` steps; `scale` multiplies
    z by sqrt(m n) / r as the authors' code does. 2 forwards a step, state U and V: (m + n) r
    numbers a matrix, rebuilt from the seed. YAML: optimizer=subzero.
    """
    return ZeroOrder(params, lr, eps, direction=Subspace(rank, refresh_every, scale), **options)


def LOZO(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    rank: int = 2,
    refresh_every: int = 50,
    scale_by_rank: bool = True,
    **options: Any,
) -> ZeroOrder:
    """LOZO (arXiv 2410.07698, Algorithm 1): W ← W - η c U Vᵀ / r, V redrawn every ν steps.

    two_sided × lazy_low_rank × dense × sgd; the authors' code has no 1/r (`scale_by_rank` False).
    2 forwards a step, state V: n r numbers a matrix, rebuilt from the seed. YAML: optimizer=lozo.
    """
    return ZeroOrder(
        params, lr, eps, direction=LazyLowRank(rank, refresh_every, scale_by_rank), **options
    )


def LOZOM(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    rank: int = 2,
    refresh_every: int = 50,
    scale_by_rank: bool = True,
    beta: float = 0.9,
    **options: Any,
) -> ZeroOrder:
    """LOZO-M (arXiv 2410.07698, Algorithm 2): N ← β N + (1 - β) c U, W ← W - η N Vᵀ.

    two_sided × lazy_low_rank × dense × factor_momentum; N ← N V_oldᵀ V_new / n when V changes.
    2 forwards a step, state V and N: (m + n) r numbers a matrix. YAML: optimizer=lozo_m.
    """
    return ZeroOrder(
        params,
        lr,
        eps,
        direction=LazyLowRank(rank, refresh_every, scale_by_rank),
        rule=FactorMomentum(beta),
        **options,
    )
