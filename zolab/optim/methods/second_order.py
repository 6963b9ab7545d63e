"""Methods with curvature; MeZO-SVRG, which keeps an anchor, is a class of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zolab.optim.rules import Helene
from zolab.optim.zero_order import ZeroOrder


def HeleneReconstructed(
    params: Iterable[Any],
    lr: float = 1e-6,
    eps: float = 1e-3,
    annealing: bool = True,
    momentum: bool = True,
    hessian: bool = True,
    layer_clip: bool = True,
    rule: dict[str, Any] | None = None,
    **options: Any,
) -> ZeroOrder:
    """HELENE (arXiv 2411.10696), reconstructed: θ_i ← θ_i - η m / (γ max(h, λ_i) + ϵ).

    two_sided × gaussian × dense × helene; m is annealed momentum, h an average of (c z)². No code
    and no constants were published, and with one probe h tells coordinates hardly apart: see
    `Helene`, to which `rule` passes constants. 2 forwards a step, state m and h: two float32
    numbers a weight. YAML: optimizer=helene_reconstructed.
    """
    return ZeroOrder(
        params,
        lr,
        eps,
        rule=Helene(annealing, momentum, hessian, layer_clip, **(rule or {})),
        **options,
    )
