"""ZO-Bench's methods (arXiv 2402.11592)

Those that do not factor into parts are classes of their own: `special.conservative`,
`special.forward_grad`, `special.block_wise`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.estimators import TwoSided
from zolab.optim.rules import Sign
from zolab.optim.special.block_wise import BlockWise
from zolab.optim.special.conservative import Conservative
from zolab.optim.special.forward_grad import ForwardGrad
from zolab.optim.zero_order import ZeroOrder


def ZOSign(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    of: str = "scalar",
    num_probes: int = 1,
    **options: Any,
) -> ZeroOrder:
    """ZO-SGD-Sign (arXiv 2402.11592): θ ← θ - η sign(c) z, or θ ← θ - η sign(c z).

    two_sided × gaussian × dense × sign. The program takes the sign of the scalar (`of="scalar"`);
    signSGD on the estimate is `of="element"`. 2n forwards a step, no state.
    YAML: optimizer=zo_sign.
    """
    return ZeroOrder(params, lr, eps, estimator=TwoSided(num_probes), rule=Sign(of), **options)


def ZOConservative(
    params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, **options: Any
) -> Conservative:
    """ZO-SGD-Cons (arXiv 2402.11592): the best of θ, θ - η c z and θ + η c z on the step's batch.

    special (conservative): two_sided × gaussian × dense. 5 forwards a step, no state.
    YAML: optimizer=zo_conservative.
    """
    return Conservative(params, lr, eps, **options)


def ForwardGradient(params: Iterable[Any], lr: float = 1e-6, **options: Any) -> ForwardGrad:
    """Forward-Grad (arXiv 2202.08587, 2402.11592): θ ← θ - η (vᵀ∇L) v, by forward-mode AD.

    special (forward_grad): gaussian × dense × sgd. 1 jvp a step (counted as 1 forward); state v:
    one number a weight while the pass runs, and a tangent beside each activation. Needs `model=`.
    YAML: optimizer=forward_grad.
    """
    return ForwardGrad(params, lr, **options)


def ZOBlockWise(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    coordinate: bool = True,
    outside: str = "blocks",
    **options: Any,
) -> BlockWise:
    """Block-wise ZO-SGD (arXiv 2402.11592): for each block b, θ_b ← θ_b - η c_b z_b.

    special (block_wise): two_sided × gaussian × sgd, one block perturbed at a time. `coordinate`
    moves a block before the next is probed. 2 forwards a block, no state.
    YAML: optimizer=zo_block_wise.
    """
    return BlockWise(params, lr, eps, coordinate=coordinate, outside=outside, **options)
