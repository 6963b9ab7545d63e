"""Optimizers: the composed zeroth-order one and whole methods."""

# `option` and `part` return dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zolab.config.fields import option, part


@dataclass
class _Rated:
    """What every zeroth-order method has."""

    name: str = option("mezo", help="method name in tables", label=True)
    lr: float = option(2.0e-4, min=0, help="learning rate")
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how z is drawn"
    )


@dataclass
class _Decayed(_Rated):
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")


@dataclass
class _Perturbing(_Rated):
    eps: float = option(1.0e-3, above=0, help="perturbation scale")
    placement: Any = part(
        "optimizer.placement", {"_target_": "auto"}, help="how perturbed losses are evaluated"
    )


@dataclass
class _Estimating(_Perturbing):
    estimator: Any = part(
        "optimizer.estimator", {"_target_": "zolab.optim.TwoSided"}, help="where to probe"
    )


@dataclass
class _Ruled(_Rated):
    rule: Any = part(
        "optimizer.rule", {"_target_": "zolab.optim.Sgd"}, help="what to do with the estimate"
    )


@dataclass
class ZeroOrder(_Estimating, _Ruled, _Decayed):
    """Any composition of estimator, direction, rule and placement."""


@dataclass
class MeZOSVRG(_Perturbing, _Decayed):
    """MeZO with a control variate from an anchor (MeZO-SVRG)."""

    name: str = option("mezo_svrg", help="method name in tables", label=True)
    lr: float = option(2.0e-5, min=0, help="learning rate of ordinary steps")
    anchor_lr: float = option(2.0e-4, min=0, help="learning rate of anchor steps")
    anchor_every: int = option(2, min=1, help="steps between anchors")


@dataclass
class Conservative(_Estimating):
    """The best of theta and both ways along the estimate, on the step's batch (ZO-SGD-Cons)."""

    name: str = option("zo_conservative", help="method name in tables", label=True)


@dataclass
class ForwardGrad(_Ruled, _Decayed):
    """The exact derivative along one direction, by forward-mode differentiation."""

    name: str = option("forward_grad", help="method name in tables", label=True)
    placement: Any = part(
        "optimizer.placement",
        {"_target_": "auto"},
        help="only auto: no weight is perturbed",
        since="0.2",
    )


@dataclass
class BlockWise(_Estimating, _Ruled, _Decayed):
    """Each block of the model is probed on its own."""

    name: str = option("zo_block_wise", help="method name in tables", label=True)
    coordinate: bool = option(True, help="move a block before the next one is probed")
    outside: str = option(
        "blocks",
        choices=("frozen", "blocks"),
        help="parameters outside the layers: never move, or each module a block of its own",
    )
