"""What zeroth-order methods are compared with: first-order methods, and no training."""

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option

_DECAY = {"min": 0, "help": "decoupled weight decay, times lr"}


@dataclass
class AdamW:
    """First-order baseline: AdamW with back-propagation."""

    name: str = option("adamw", help="method name in tables", label=True)
    lr: float = option(3.0e-4, min=0, help="learning rate")
    beta1: float = option(0.9, min=0, below=1, help="decay of the first moment")
    beta2: float = option(0.999, min=0, below=1, help="decay of the second moment")
    weight_decay: float = option(0.0, **_DECAY)


@dataclass
class SGD:
    """First-order baseline: SGD with back-propagation."""

    name: str = option("sgd", help="method name in tables", label=True)
    lr: float = option(1.0e-2, min=0, help="learning rate")
    momentum: float = option(0.0, min=0, below=1, help="decay of the momentum; 0: no state")
    weight_decay: float = option(0.0, min=0, help="added to the gradient, times the weight")


@dataclass
class LOMO:
    """SGD inside the backward pass (LOMO)."""

    name: str = option("lomo", help="method name in tables", label=True)
    lr: float = option(1.0e-2, min=0, help="learning rate")
    clip_value: float | None = option(None, above=0, help="bound on each gradient entry")


@dataclass
class AdaLOMO:
    """Factored second moments inside the backward pass (AdaLomo)."""

    name: str = option("adalomo", help="method name in tables", label=True)
    lr: float = option(1.0e-3, min=0, help="learning rate relative to the size of the weights")
    weight_decay: float = option(0.0, **_DECAY)


@dataclass
class GaLore(AdamW):
    """AdamW in the leading singular vectors of the gradient (GaLore)."""

    name: str = option("galore", help="method name in tables", label=True)
    rank: int = option(8, min=1, help="directions kept of a matrix")
    update_every: int = option(200, min=1, help="steps between projections")
    scale: float = option(4.0, above=0, help="factor of a projected update")


@dataclass
class APOLLO(AdamW):
    """Scaled gradients, the scales learned in a random projection (APOLLO)."""

    name: str = option("apollo", help="method name in tables", label=True)
    rank: int = option(32, min=1, help="rows of the projection")
    update_every: int = option(200, min=1, help="steps between projections")
    scale: float = option(1.0, above=0, help="factor of a projected matrix's update")
    per: str = option(
        "channel", choices=("channel", "tensor"), help="a scale a column, or one a matrix (Mini)"
    )


@dataclass
class AdamWSN(AdamW):
    """AdamW with one second moment for a subset of weights (subset norm)."""

    name: str = option("adamw_sn", help="method name in tables", label=True)
    lr: float = option(3.0e-3, min=0, help="learning rate")
    subset_size: int = option(
        -1, min=-1, help="weights that share a second moment; -1: about the root of a tensor's size"
    )


@dataclass
class HiFT(AdamW):
    """AdamW on one group of layers at a time (HiFT)."""

    name: str = option("hift", help="method name in tables", label=True)
    group_size: int = option(1, min=1, help="layers that move together")
    order: str = option(
        "bottom_up",
        choices=("bottom_up", "top_down", "random"),
        help="whose turn is next",
    )


@dataclass
class ZeroShot:
    """No training: the model as it is, raw or with calibrated label words."""

    name: str = option("zero_shot", help="method name in tables", label=True)
    calibrate: bool = option(
        False, help="subtract each label word's mean log-probability over unlabelled rows"
    )
    num_calibration: int = option(200, min=1, help="training rows used to calibrate")


@dataclass
class ICL:
    """No training: answered examples before each question (in-context learning)."""

    name: str = option("icl", help="method name in tables", label=True)
    num_demonstrations: int = option(32, min=1, help="examples at most; as many as fit")
    demo_seed: int | None = option(
        None, min=0, help="one set for all questions, drawn with this; null: a set for each"
    )


@dataclass
class LinearProbing:
    """No training of the model: a logistic regression on its last hidden state."""

    name: str = option("linear_probing", help="method name in tables", label=True)
    intercept: str = option(
        "auto", choices=("auto", "yes", "no"), help="auto: none for OPT, whose features have one"
    )
    max_iter: int = option(5000, min=1, help="iterations of the solver at most")
    tol: float = option(1.0e-4, above=0, help="tolerance of the solver")
    folds: int = option(5, min=2, help="folds of the cross-validation that picks the penalty")
