"""MeZO and the forms of it that differ in the estimator or in what is done with the estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.estimators import OnePoint, OneSided, TwoSided
from zolab.optim.rules import Adam, Momentum
from zolab.optim.zero_order import ZeroOrder


def MeZO(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, num_probes: int = 1, **options: Any
) -> ZeroOrder:
    """MeZO (arXiv 2305.17333, Algorithm 1): θ ← θ - η c z, c = (L(θ+εz) - L(θ-εz)) / 2ε.

    two_sided × gaussian × dense × sgd. 2n forwards a step, no state. YAML: optimizer=mezo.
    """
    return ZeroOrder(params, lr, eps, estimator=TwoSided(num_probes), **options)


def NSPSA(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    num_probes: int = 4,
    num_steps: int | None = None,
    **options: Any,
) -> ZeroOrder:
    """n-SPSA (arXiv 2305.17333, Definition 1 and Algorithm 2): θ ← θ - η/n Σ_j c_j z_j.

    two_sided (n probes) × gaussian × dense × sgd. With `num_steps` n grows linearly to
    `num_probes`: max(1, floor(t / num_steps · n)), t from 0. All directions see the step's one
    batch; scale η with n. 2n forwards a step; state: n seeds and n scalars.
    YAML: optimizer=mezo_nspsa, optimizer=mezo_nspsa_linear.
    """
    schedule = "constant" if num_steps is None else "linear"
    return ZeroOrder(
        params, lr, eps, estimator=TwoSided(num_probes, schedule, num_steps), **options
    )


def AdaZetaQueries(
    params: Iterable[Any],
    lr: float = 1e-4,
    eps: float = 1e-3,
    num_probes: int = 15,
    beta: float = 0.85,
    alpha: float = 1.0,
    epoch_steps: int = 1000,
    **options: Any,
) -> ZeroOrder:
    """AdaZeta's query schedule (arXiv 2406.18060): Q_e = min(max(⌊β e^α⌋, 1), Q_max) in epoch e.

    two_sided (Q_e probes, at most `num_probes`) × gaussian × dense × sgd. The schedule alone: the
    paper's tensor-train adapters are a choice of parameters. 2 Q_e forwards a step; state: Q_e
    seeds and scalars. YAML: optimizer=adazeta_queries.
    """
    queries = TwoSided(num_probes, "power", None, beta, alpha, epoch_steps)
    return ZeroOrder(params, lr, eps, estimator=queries, **options)


def OneSidedMeZO(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, num_probes: int = 1, **options: Any
) -> ZeroOrder:
    """MeZO with forward differences (ZO-Bench, arXiv 2402.11592): c_j = (L(θ+εz_j) - L(θ)) / ε.

    one_sided × gaussian × dense × sgd. n + 1 forwards a step (L(θ) is shared); state: n seeds and
    n scalars. YAML: optimizer=mezo_one_sided.
    """
    return ZeroOrder(params, lr, eps, estimator=OneSided(num_probes), **options)


def OnePointMeZO(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, **options: Any
) -> ZeroOrder:
    """MeZO with one-point residual feedback (arXiv 2305.17333).

    c_t = (L(θ_t+εz_t; B_t) - L(θ_{t-1}+εz_{t-1}; B_{t-1})) / ε; the first step only stores.
    one_point × gaussian × dense × sgd. 1 forward a step; state: the last loss.
    YAML: optimizer=mezo_one_point.
    """
    return ZeroOrder(params, lr, eps, estimator=OnePoint(), **options)


def MeZOMomentum(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, beta: float = 0.9, **options: Any
) -> ZeroOrder:
    """MeZO with momentum (arXiv 2305.17333, section 2.2): m ← β m + c z, θ ← θ - η m.

    two_sided × gaussian × dense × momentum. 2 forwards a step, state m: one float32 a weight.
    YAML: optimizer=mezo_momentum.
    """
    return ZeroOrder(params, lr, eps, rule=Momentum(beta), **options)


def MeZOMomentumReplayed(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    beta: float = 0.9,
    window: int | None = None,
    **options: Any,
) -> ZeroOrder:
    """MeZO-momentum, memory-free (arXiv 2305.17333): θ ← θ - η Σ_k β^k c_{t-k} z_{t-k}.

    two_sided × gaussian × dense × momentum (history replayed). 2 forwards a step; state: the seeds
    and scalars of the last `window` steps (default: the fewest with β^window < 1e-3).
    YAML: optimizer=mezo_momentum_replayed.
    """
    return ZeroOrder(params, lr, eps, rule=Momentum(beta, "replayed", window), **options)


def MeZOAdam(
    params: Iterable[Any],
    lr: float = 1e-4,
    eps: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    **options: Any,
) -> ZeroOrder:
    """MeZO-Adam (arXiv 2305.17333, section 2.2), ZO-Adam of ZO-Bench: Adam's moments on g = c z.

    θ ← θ - η m̂ / (√v̂ + ϵ), m ← β1 m + (1-β1) g, v ← β2 v + (1-β2) g².
    two_sided × gaussian × dense × adam. 2 forwards a step; state m and v: two float32 a weight.
    YAML: optimizer=mezo_adam.
    """
    return ZeroOrder(params, lr, eps, rule=Adam(beta1, beta2), **options)


def MeZOAdamReplayed(
    params: Iterable[Any],
    lr: float = 1e-4,
    eps: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.95,
    window: int | None = None,
    **options: Any,
) -> ZeroOrder:
    """MeZO-Adam, memory-free (arXiv 2305.17333): both moments made anew from scalars.

    two_sided × gaussian × dense × adam (history replayed). 2 forwards a step; state: the seeds and
    scalars of the last `window` steps (default: the fewest with β2^window < 1e-3). Each update
    makes the noise of the whole window: β2 = 0.999 would need 6905 steps of it.
    YAML: optimizer=mezo_adam_replayed.
    """
    rule = Adam(beta1, beta2, history="replayed", window=window)
    return ZeroOrder(params, lr, eps, rule=rule, **options)
