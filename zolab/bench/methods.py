"""The schemes of `zolab bench memory`: every method of `zolab.optim` with the placements it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Constructors of `zolab.optim` by the name a scheme has for them, and what they are given; moments
#: are replayed over a short window, so that plain torch makes its noise in reasonable time.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mezo": ("MeZO", {}),
    "nspsa": ("NSPSA", {"num_probes": 4}),
    "one_sided": ("OneSidedMeZO", {"num_probes": 2}),
    "one_point": ("OnePointMeZO", {}),
    "momentum": ("MeZOMomentum", {}),
    "momentum_replayed": ("MeZOMomentumReplayed", {"beta": 0.1}),
    "adam": ("MeZOAdam", {}),
    "adam_replayed": ("MeZOAdamReplayed", {"beta1": 0.1, "beta2": 0.1}),
    "small_weights": ("SparseMeZO", {}),
    "large_weights": ("LargeWeightsMeZO", {}),
    "random": ("RMeZO", {}),
    "pruning": ("RMeZO", {"resample": "step"}),
    "layers": ("LeZO", {}),
    "adazeta": ("AdaZetaQueries", {"num_probes": 3}),
    "helene": ("HeleneReconstructed", {}),
    "sign": ("ZOSign", {}),
    "sign_element": ("ZOSign", {"of": "element"}),
    "conservative": ("ZOConservative", {}),
    "block_wise": ("ZOBlockWise", {}),
    "subzero": ("SubZero", {}),
    "lozo": ("LOZO", {}),
    "lozo_m": ("LOZOM", {}),
    "svrg": ("MeZOSVRG", {}),
    "forward_grad": ("ForwardGradient", {}),
}

#: What the claims of zeroth-order papers are measured against: classes of `zolab.baselines`.
FIRST_ORDER = {"adamw": "AdamW", "sgd": "SGD"}
BACKPROP = "backward"


@dataclass(frozen=True)
class Scheme:
    """One way of taking steps; `placement` None is inference, `BACKPROP` a first-order method."""

    placement: str | None = None
    method: str = "mezo"
    self_check: bool = False


#: Forward-gradient perturbs no weight, so it has no placement.
PLACED = [method for method in METHODS if method not in ("mezo", "forward_grad")]
SCHEMES = {
    "inference": Scheme(),
    "in_place": Scheme("in_place"),
    "paired": Scheme("paired"),
    "per_layer": Scheme("per_layer"),
    "self_check+paired": Scheme("paired", self_check=True),
    "forward_grad": Scheme("untouched", "forward_grad"),
    **{name: Scheme(BACKPROP, name) for name in FIRST_ORDER},
    **{f"{p}+{m}": Scheme(p, m) for m in PLACED for p in ("in_place", "paired")},
}
#: Those that the limits are about, and one of each kind; `--methods` takes all.
USUAL = [
    *("inference", "in_place", "paired", "self_check+paired", "in_place+small_weights"),
    *("paired+small_weights", "in_place+momentum", "paired+momentum"),
]
