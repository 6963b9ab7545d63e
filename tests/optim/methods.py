"""Every named method as a line of a table, for the tests that go over all of them.

An exemption names the law (or "placements") and says why it cannot hold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.optim.tiny import lm_closure
from zolab.optim import (
    LOZO,
    LOZOM,
    NSPSA,
    AdaZetaQueries,
    ForwardGradient,
    HeleneReconstructed,
    InPlace,
    LargeWeightsMeZO,
    LeZO,
    MeZO,
    MeZOAdam,
    MeZOAdamReplayed,
    MeZOMomentum,
    MeZOMomentumReplayed,
    MeZOSVRG,
    OnePointMeZO,
    OneSidedMeZO,
    Paired,
    PerLayer,
    RMeZO,
    SparseMeZO,
    SubZero,
    ZeroOrder,
    ZOBlockWise,
    ZOConservative,
    ZOSign,
)


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        make: constructor; takes parameters and the keywords of `ZeroOrder`.
        forwards: forwards of a step (from 1), the table of the reference.
        yaml: overrides that compose it.
        lr: rate at which it descends the tiny language model in 40 steps.
        quadratic_lr: rate at which it descends the quadratic in 300 steps.
        options: what makes a short test meet every branch (refreshes within a few steps, ...).
        exempt: law -> reason.
    """

    make: Callable[..., ZeroOrder]
    forwards: Callable[[int], int]
    yaml: tuple[str, ...]
    lr: float = 1e-2
    quadratic_lr: float = 4e-3
    options: dict[str, Any] = field(default_factory=dict)
    exempt: dict[str, str] = field(default_factory=dict)


def two(step: int) -> int:
    return 2


def forward_gradient(params: Any, placement: Any, **options: Any) -> ZeroOrder:
    return ForwardGradient(params, **options)


_SOON = {"rank": 3, "refresh_every": 3}
METHODS: dict[str, Method] = {
    "mezo": Method(MeZO, two, ("optimizer=mezo",)),
    "n_spsa": Method(
        MeZO,
        lambda step: 6,
        ("optimizer=mezo", "optimizer.estimator.num_probes=3"),
        options={"num_probes": 3},
    ),
    "mezo_momentum": Method(
        MeZOMomentum, two, ("optimizer=mezo_momentum",), lr=1e-3, quadratic_lr=4e-4
    ),
    "sparse_mezo": Method(SparseMeZO, two, ("optimizer=mezo", "sparsity=small_weights")),
    "sparse_mezo_refresh": Method(
        SparseMeZO,
        two,
        (
            *("optimizer=mezo", "sparsity=small_weights", "sparsity.threshold=global"),
            "sparsity.refresh_every=3",
        ),
        options={"threshold": "global", "refresh_every": 3},
    ),
    "large_weights": Method(LargeWeightsMeZO, two, ("optimizer=mezo", "sparsity=large_weights")),
    "r_mezo": Method(RMeZO, two, ("optimizer=mezo", "sparsity=random")),
    "pruning": Method(
        RMeZO,
        two,
        (
            *("optimizer=mezo", "sparsity=random", "sparsity.resample=step"),
            "sparsity.resample_every=3",
        ),
        options={"resample": "step", "resample_every": 3},
    ),
    "lezo": Method(
        LeZO,
        two,
        ("optimizer=mezo", "sparsity=layers", "sparsity.sparsity=0.5"),
        options={"sparsity": 0.5},
    ),
    "subzero": Method(
        SubZero,
        two,
        (
            *("optimizer=subzero", "optimizer.direction.rank=3"),
            "optimizer.direction.refresh_every=3",
        ),
        options=_SOON,
    ),
    "lozo": Method(
        LOZO,
        two,
        ("optimizer=lozo", "optimizer.direction.rank=3", "optimizer.direction.refresh_every=3"),
        lr=5e-3,
        options=_SOON,
    ),
    "lozo_m": Method(
        LOZOM,
        two,
        ("optimizer=lozo_m", "optimizer.direction.rank=3", "optimizer.direction.refresh_every=3"),
        lr=2e-2,
        options=_SOON,
    ),
    "helene_reconstructed": Method(
        HeleneReconstructed,
        two,
        ("optimizer=helene_reconstructed", "optimizer.rule.hessian_every=3"),
        lr=1e-3,
        quadratic_lr=3e-3,
        options={"rule": {"hessian_every": 3}},
        exempt={"gradient": "its bound divides by what it has seen"},
    ),
    "mezo_svrg": Method(
        MeZOSVRG,
        lambda step: 2 if step % 3 == 1 else 4,
        ("optimizer=mezo_svrg", "optimizer.anchor_every=3"),
        lr=3e-3,
        quadratic_lr=1e-3,
        options={"anchor_every": 3, "anchor_lr": 1e-3},
        exempt={
            "layers": "g̃ and both control terms must see the same coordinates: no changing mask"
        },
    ),
    "n_spsa_linear": Method(
        NSPSA,
        lambda step: 2 * min(3, max(1, 3 * (step - 1) // 6)),
        (
            *("optimizer=mezo_nspsa_linear", "optimizer.estimator.num_probes=3"),
            "train.steps=6",
        ),
        options={"num_probes": 3, "num_steps": 6},
    ),
    "adazeta_queries": Method(
        AdaZetaQueries,
        lambda step: 2 * min(3, max(1, int(0.85 * ((step - 1) // 2 + 1)))),
        (
            *("optimizer=adazeta_queries", "optimizer.estimator.num_probes=3"),
            "optimizer.estimator.epoch_steps=2",
        ),
        options={"num_probes": 3, "epoch_steps": 2},
    ),
    "one_sided": Method(
        OneSidedMeZO,
        lambda step: 4,
        ("optimizer=mezo_one_sided", "optimizer.estimator.num_probes=3"),
        options={"num_probes": 3},
    ),
    "one_point": Method(
        OnePointMeZO,
        lambda step: 1,
        ("optimizer=mezo_one_point", "optimizer.eps=0.1"),
        lr=6e-3,
        quadratic_lr=1e-3,
        options={"eps": 0.1},  # what the weights moved since the step before counts as 1/eps
    ),
    "momentum_replayed": Method(
        MeZOMomentumReplayed,
        two,
        ("optimizer=mezo_momentum_replayed", "optimizer.rule.beta=0.7"),
        lr=3e-3,
        quadratic_lr=1e-3,
        options={"beta": 0.7},
        exempt={"layers": "the masks of old steps are not kept"},
    ),
    "mezo_adam": Method(
        MeZOAdam,
        two,
        ("optimizer=mezo_adam",),
        lr=3e-3,
        quadratic_lr=1e-2,
        exempt={"gradient": "its first step is a sign"},
    ),
    "adam_replayed": Method(
        MeZOAdamReplayed,
        two,
        ("optimizer=mezo_adam_replayed", "optimizer.rule.beta2=0.8", "optimizer.rule.beta1=0.7"),
        lr=3e-3,
        quadratic_lr=1e-2,
        options={"beta1": 0.7, "beta2": 0.8},
        exempt={
            "gradient": "its first step is a sign",
            "layers": "the masks of old steps are not kept",
        },
    ),
    "zo_sign": Method(
        ZOSign,
        two,
        ("optimizer=zo_sign",),
        lr=3e-3,
        quadratic_lr=1e-2,
        exempt={"gradient": "a sign has no size"},
    ),
    "zo_sign_element": Method(
        ZOSign,
        two,
        ("optimizer=zo_sign", "optimizer.rule.of=element"),
        lr=3e-3,
        quadratic_lr=1e-2,
        options={"of": "element"},
        exempt={"gradient": "a sign has no size"},
    ),
    "zo_conservative": Method(
        ZOConservative,
        lambda step: 5,
        ("optimizer=zo_conservative",),
        exempt={
            "gradient": "it keeps the best of three",
            "decay": "refused: its candidates lie along z",
        },
    ),
    "zo_block_wise": Method(
        ZOBlockWise,
        lambda step: 4,
        ("optimizer=zo_block_wise", "optimizer.outside=frozen"),
        options={"outside": "frozen"},
        exempt={"layers": "blocks are its mask", "own": "blocks are its mask"},
    ),
    "zo_block_wise_late": Method(
        ZOBlockWise,
        lambda step: 8,
        ("optimizer=zo_block_wise", "optimizer.coordinate=false"),
        options={"coordinate": False},
        exempt={
            "layers": "blocks are its mask",
            "own": "blocks are its mask",
            "quadratic": "its two tensors belong to one layer: nothing to add to zo_block_wise",
        },
    ),
    "forward_grad": Method(
        forward_gradient,
        lambda step: 1,
        ("optimizer=forward_grad",),
        exempt={"placements": "it perturbs no weight"},
    ),
}
PLACEMENTS = [InPlace, Paired, PerLayer]
#: Methods that are a mask, as constructors and YAML have them.
MASKED = [name for name, method in METHODS.items() if "sparsity=" in str(method.yaml)]


def cases(law: str) -> list[str]:
    """Methods under a law."""
    return [name for name, method in METHODS.items() if law not in method.exempt]


def pairs(names: Iterable[str]) -> list[tuple[type, str]]:
    """Placements and methods; a name may go on after a plus sign."""
    return [
        (placement, name)
        for placement in PLACEMENTS
        for name in names
        if placement is InPlace or "placements" not in METHODS[name.partition("+")[0]].exempt
    ]


def closure_of(name: str, model: nn.Module) -> Callable[[int], list]:
    """The language model's loss as the method needs it: numbers, or tensors for a derivative."""
    return lm_closure(model, tensors=name == "forward_grad")


def build(name: str, model: nn.Module, placement=InPlace, **options: Any) -> ZeroOrder:
    method = METHODS[name]
    options = {"lr": method.lr, "seed": 3, **copy.deepcopy(method.options), **options}
    return method.make(model.named_parameters(), placement=placement(), model=model, **options)


def steps(optimizer: ZeroOrder, closure, num: int) -> list:
    records = []
    for _ in range(num):
        optimizer.step(closure)
        records.append(optimizer.last)
    return records


def again(optimizer: ZeroOrder, records: list) -> None:
    for r in records:
        optimizer.replay(r.step, r.lr, r.coefficients, r.extra, r.losses)


def describe(optimizer: ZeroOrder) -> dict[str, Any]:
    """Class and settings of the optimizer and its parts."""
    parts = ["estimator", "direction", "mask", "rule"]
    out: dict[str, Any] = {"class": type(optimizer).__name__}
    for name in parts:
        part = getattr(optimizer, name)
        settings = {
            k: v
            for k, v in vars(part).items()
            if not k.startswith("_") and isinstance(v, bool | int | float | str | list | None)
        }
        settings.pop("run_seed", None)
        out[name] = (type(part).__name__, settings)
    defaults = {"anchor_every"}
    out |= {k: v for k, v in vars(optimizer).items() if k in defaults}
    return out
