"""Schemas of the parts chosen by `_target_` or `kind`, and the one mapping that chooses them.

A part's dataclass repeats the keyword arguments of the class it stands for, so that a grid is
checked on a login node without importing torch; `tests/test_conf.py` compares both.
"""

# `option`, `part` and `section` return dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zolab.config.fields import option, part

# --- parts of a zeroth-order optimizer -------------------------------------------------------

_SCHEDULE = {
    "choices": ("constant", "linear", "power"),
    "help": "n directions; growing to n over the run; min(beta e^alpha, n) in epoch e",
}
_HISTORY = {
    "choices": ("stored", "replayed"),
    "help": "moments kept as tensors, or made anew from the seeds and scalars of the last steps",
}
_WINDOW = {
    "min": 1,
    "help": "steps that replayed moments reach back; null: until beta^window < 1e-3",
}


@dataclass
class TwoSided:
    """Loss at theta + eps z and theta - eps z (SPSA; MeZO, Alg. 1)."""

    num_probes: int = option(1, min=1, help="directions per step (n of n-SPSA), at most")
    schedule: str = option("constant", **_SCHEDULE)
    num_steps: int | None = option(None, min=1, help="steps of the run, for schedule=linear")
    beta: float = option(1.0, above=0, help="factor of schedule=power")
    alpha: float = option(0.5, min=0, help="exponent of schedule=power")
    epoch_steps: int | None = option(None, min=1, help="steps of an epoch, for schedule=power")


@dataclass
class OneSided:
    """Loss at theta + eps z, then at theta (forward differences)."""

    num_probes: int = option(1, min=1, help="directions per step, at most")
    shared: bool = option(True, help="one loss at theta for all directions of a step")
    schedule: str = option("constant", **_SCHEDULE)
    num_steps: int | None = option(None, min=1, help="steps of the run, for schedule=linear")
    beta: float = option(1.0, above=0, help="factor of schedule=power")
    alpha: float = option(0.5, min=0, help="exponent of schedule=power")
    epoch_steps: int | None = option(None, min=1, help="steps of an epoch, for schedule=power")


@dataclass
class OnePoint:
    """Loss at theta + eps z, less that of the last step (residual feedback)."""


@dataclass
class Gaussian:
    """z with independent standard normal entries."""

    noise: str = option(
        "gauss",
        choices=("gauss", "gauss8"),
        help="how the normals are made from Philox words: 32 bits each, or 8 (fast)",
    )


@dataclass
class Rademacher:
    """z with independent entries -1 or +1."""

    noise: str = option("rademacher", choices=("rademacher",), help="one Philox bit per entry")


@dataclass
class Subspace:
    """z = U Z Vᵀ with orthonormal U and V that last a while (SubZero)."""

    rank: int = option(48, min=1, help="columns of U and V")
    refresh_every: int = option(1000, min=1, help="steps that U and V last")
    scale: bool = option(True, help="times sqrt(m n) / rank, as long as a plain Gaussian")


@dataclass
class LazyLowRank:
    """z = U Vᵀ with a fresh U and a V that lasts a while (LOZO)."""

    rank: int = option(2, min=1, help="columns of U and V")
    refresh_every: int = option(50, min=1, help="steps that V lasts")
    scale_by_rank: bool = option(
        True, help="divide the estimate by the rank, as the paper; its code does not"
    )


@dataclass
class Sgd:
    """theta <- theta - lr * estimate."""


@dataclass
class Momentum:
    """Heavy ball: the update follows a running sum of estimates."""

    beta: float = option(0.9, min=0, below=1, help="decay of the running sum")
    history: str = option("stored", **_HISTORY)
    window: int | None = option(None, **_WINDOW)


@dataclass
class Adam:
    """Adam's two moments on the estimate."""

    beta1: float = option(0.9, min=0, below=1, help="decay of the first moment")
    beta2: float = option(0.999, min=0, below=1, help="decay of the second moment")
    adam_eps: float = option(1.0e-8, above=0, help="added to the root of the second moment")
    form: str = option(
        "torch",
        choices=("torch", "transformers"),
        help="where adam_eps stands: as torch.optim.Adam, or as the AdamW of transformers 4.28",
    )
    history: str = option("stored", **_HISTORY)
    window: int | None = option(None, **_WINDOW)


@dataclass
class Sign:
    """Steps along the sign of the scalar, or of each element of the estimate."""

    of: str = option("scalar", choices=("scalar", "element"), help="what the sign is taken of")


@dataclass
class FactorMomentum:
    """Momentum on the fresh factor of a lazy low-rank direction (LOZO-M)."""

    beta: float = option(0.9, min=0, below=1, help="decay of the running mean")


@dataclass
class Helene:
    """Annealed momentum over a diagonal curvature bounded by layer (HELENE, reconstructed)."""

    annealing: bool = option(True, help="weight of an estimate falls from 1 to beta1")
    momentum: bool = option(True, help="running sum of estimates")
    hessian: bool = option(True, help="divide by an average of squared estimates")
    layer_clip: bool = option(True, help="bound that average from below, layer by layer")
    beta1: float = option(0.9, min=0, below=1, help="decay of the running sum")
    beta2: float = option(0.99, min=0, below=1, help="decay of the average of squares")
    anneal_steps: float = option(100.0, above=0, help="time constant of the annealing in steps")
    hessian_every: int = option(10, min=1, help="steps between looks at the curvature")
    batch_factor: float = option(1.0, above=0, help="factor on squares; Sophia: the batch size")
    gamma: float = option(1.0, above=0, help="factor on the bounded average")
    clip: str = option(
        "constant",
        choices=("quantile", "constant"),
        help="bound: a quantile of the layer's own average, or one number",
    )
    clip_value: float = option(1.0, min=0, help="that quantile (at most 1), or that number")
    warmup_steps: int = option(100, min=0, help="steps before a quantile is taken and used")
    damping: float = option(1.0e-8, above=0, help="added to the denominator")


@dataclass
class InPlace:
    """Weights are perturbed in place and restored (MeZO)."""

    sweeps: str = option(
        "two",
        choices=("two", "official"),
        help="fused sweeps, or back after each probe and the update apart, as published programs",
    )


@dataclass
class Paired:
    """Both signs in one forward over the doubled batch; weights are never perturbed."""


@dataclass
class PerLayer:
    """Each module perturbs its own weights on entry and puts the saved copy back on exit."""


@dataclass
class Auto:
    """Left to the optimizer: in_place for float32 without a mask, paired otherwise."""


# --- optimizers ------------------------------------------------------------------------------


@dataclass
class ZeroOrder:
    """Any composition of estimator, direction, rule and placement."""

    name: str = option("mezo", help="method name in tables", label=True)
    lr: float = option(2.0e-4, min=0, help="learning rate")
    eps: float = option(1.0e-3, above=0, help="perturbation scale")
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")
    estimator: Any = part(
        "optimizer.estimator", {"_target_": "zolab.optim.TwoSided"}, help="where to probe"
    )
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how z is drawn"
    )
    rule: Any = part(
        "optimizer.rule", {"_target_": "zolab.optim.Sgd"}, help="what to do with the estimate"
    )
    placement: Any = part(
        "optimizer.placement", {"_target_": "auto"}, help="how perturbed losses are evaluated"
    )


@dataclass
class MeZOSVRG:
    """MeZO with a control variate from an anchor (MeZO-SVRG)."""

    name: str = option("mezo_svrg", help="method name in tables", label=True)
    lr: float = option(2.0e-5, min=0, help="learning rate of ordinary steps")
    eps: float = option(1.0e-3, above=0, help="perturbation scale")
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")
    anchor_lr: float = option(2.0e-4, min=0, help="learning rate of anchor steps")
    anchor_every: int = option(2, min=1, help="steps between anchors")
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how z is drawn"
    )
    placement: Any = part(
        "optimizer.placement", {"_target_": "auto"}, help="how perturbed losses are evaluated"
    )


@dataclass
class Conservative:
    """The best of theta and both ways along the estimate, on the step's batch (ZO-SGD-Cons)."""

    name: str = option("zo_conservative", help="method name in tables", label=True)
    lr: float = option(2.0e-4, min=0, help="learning rate")
    eps: float = option(1.0e-3, above=0, help="perturbation scale")
    estimator: Any = part(
        "optimizer.estimator", {"_target_": "zolab.optim.TwoSided"}, help="where to probe"
    )
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how z is drawn"
    )
    placement: Any = part(
        "optimizer.placement", {"_target_": "auto"}, help="how perturbed losses are evaluated"
    )


@dataclass
class ForwardGrad:
    """The exact derivative along one direction, by forward-mode differentiation."""

    name: str = option("forward_grad", help="method name in tables", label=True)
    lr: float = option(2.0e-4, min=0, help="learning rate")
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how v is drawn"
    )
    rule: Any = part(
        "optimizer.rule", {"_target_": "zolab.optim.Sgd"}, help="what to do with the estimate"
    )


@dataclass
class BlockWise:
    """Each block of the model is probed on its own."""

    name: str = option("zo_block_wise", help="method name in tables", label=True)
    lr: float = option(2.0e-4, min=0, help="learning rate")
    eps: float = option(1.0e-3, above=0, help="perturbation scale")
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")
    coordinate: bool = option(True, help="move a block before the next one is probed")
    outside: str = option(
        "blocks",
        choices=("frozen", "blocks"),
        help="parameters outside the layers: never move, or each module a block of its own",
    )
    estimator: Any = part(
        "optimizer.estimator", {"_target_": "zolab.optim.TwoSided"}, help="where to probe"
    )
    direction: Any = part(
        "optimizer.direction", {"_target_": "zolab.optim.Gaussian"}, help="how z is drawn"
    )
    rule: Any = part(
        "optimizer.rule", {"_target_": "zolab.optim.Sgd"}, help="what to do with the estimate"
    )
    placement: Any = part(
        "optimizer.placement", {"_target_": "auto"}, help="how perturbed losses are evaluated"
    )


@dataclass
class AdamW:
    """First-order baseline: AdamW with back-propagation."""

    name: str = option("adamw", help="method name in tables", label=True)
    lr: float = option(3.0e-4, min=0, help="learning rate")
    beta1: float = option(0.9, min=0, below=1, help="decay of the first moment")
    beta2: float = option(0.999, min=0, below=1, help="decay of the second moment")
    weight_decay: float = option(0.0, min=0, help="decoupled weight decay, times lr")


@dataclass
class ZeroShot:
    """No training: the model as it is, raw or with calibrated label words."""

    name: str = option("zero_shot", help="method name in tables", label=True)
    calibrate: bool = option(
        False, help="subtract each label word's mean log-probability over unlabelled rows"
    )
    num_calibration: int = option(200, min=1, help="training rows used to calibrate")


# --- sparsity --------------------------------------------------------------------------------

_SPARSITY = {"min": 0, "below": 1, "help": "share of each matrix's weights that is FROZEN"}
_VECTORS = {
    "choices": ("dense", "frozen", "masked"),
    "help": "what 1-D tensors do: all train, none, or masked like matrices",
}
_THRESHOLD = {
    "choices": ("tensor", "global"),
    "help": "a magnitude quantile for each tensor, or one for all",
}
_REFRESH = {"min": 0, "help": "steps between new thresholds; 0: those of the initial weights"}


@dataclass
class Dense:
    """Every weight is perturbed and trained."""

    name: str = option("none", help="mask name in tables", label=True)


@dataclass
class SmallWeights:
    """Only the smallest weights of each tensor move (Sparse-MeZO)."""

    name: str = option("small_weights", help="mask name in tables", label=True)
    sparsity: float = option(0.75, **_SPARSITY)
    vectors: str = option("dense", **_VECTORS)
    threshold: str = option("tensor", **_THRESHOLD)
    refresh_every: int = option(0, **_REFRESH)


@dataclass
class LargeWeights:
    """Only the largest weights of each tensor move (control for Sparse-MeZO)."""

    name: str = option("large_weights", help="mask name in tables", label=True)
    sparsity: float = option(0.75, **_SPARSITY)
    vectors: str = option("dense", **_VECTORS)
    threshold: str = option("tensor", **_THRESHOLD)
    refresh_every: int = option(0, **_REFRESH)


@dataclass
class RandomMask:
    """A random choice of weights moves (control for Sparse-MeZO)."""

    name: str = option("random", help="mask name in tables", label=True)
    sparsity: float = option(0.75, **_SPARSITY)
    vectors: str = option("dense", **_VECTORS)
    resample: str = option(
        "run", choices=("run", "step"), help="one mask per run, or new ones as it goes on"
    )
    resample_every: int = option(1, min=1, help="steps a mask lasts under resample=step")


@dataclass
class LayerMask:
    """A random share of the layers moves in each step (LeZO)."""

    name: str = option("layers", help="mask name in tables", label=True)
    sparsity: float = option(0.75, min=0, below=1, help="share of the layers that is FROZEN")
    always_active: list[str] = option(
        ["embed", "head", "final_norm"], help="what outside the layers moves in every step"
    )


# --- tasks and launchers, chosen by `kind` ---------------------------------------------------


@dataclass
class Classification:
    """One text, one label word: the prompt is the template, the answer one of the label words."""

    name: str = option(help="task name in tables", label=True)
    path: str = option(help="embedded name, or a folder with train.jsonl and test.jsonl")
    template: str = option(help="prompt with the row's fields in braces, such as {sentence}")
    label_words: list[str] = option(help="answer of label 0, 1, ...")
    label_column: str = option("label", help="field that holds the label")
    num_train: int = option(1000, min=1, help="training rows used, at most")
    num_dev: int = option(500, min=1, help="dev rows used, at most")
    num_test: int = option(1000, min=1, help="test rows used, at most")
    max_length: int | None = option(
        None, min=2, help="longest prompt in tokens; null: what the model can take"
    )


@dataclass
class LocalLauncher:
    """Cells run on this machine, several at a time."""

    name: str = option("local", help="launcher name", label=True)
    parallel: int | None = option(None, min=1, help="cells at a time; null: number of cores")
    threads: int = option(1, min=1, help="CPU threads per cell")


@dataclass
class SlurmLauncher:
    """Cells run as one SLURM array."""

    name: str = option("slurm", help="launcher name", label=True)
    partition: str | None = option(None, help="SLURM partition; null: the default one")
    account: str | None = option(None, help="account that is charged")
    qos: str | None = option(None, help="quality of service")
    gres: str | None = option(None, help="generic resources, such as gpu:a100:1")
    gpus: int | None = option(None, min=0, help="GPUs per cell; null: 1 if the cluster has any")
    cpus: int = option(4, min=1, help="CPU cores per cell")
    memory_gb: float | None = option(None, above=0, help="memory per cell in GB")
    time_minutes: int = option(60, min=1, help="time limit of a job in minutes")
    array_parallelism: int = option(256, min=1, help="array members that may run at a time")
    setup: list[str] = option([], help="shell lines run before the job")
    signal_seconds: int = option(
        120, min=0, help="how long before the time limit a cell is told to save, in seconds"
    )


#: slot -> (key that chooses, value of that key -> dataclass). The only such mapping.
PARTS: dict[str, tuple[str, dict[str, type]]] = {
    "optimizer": (
        "_target_",
        {
            "zolab.optim.ZeroOrder": ZeroOrder,
            "zolab.optim.MeZOSVRG": MeZOSVRG,
            "zolab.optim.Conservative": Conservative,
            "zolab.optim.ForwardGrad": ForwardGrad,
            "zolab.optim.BlockWise": BlockWise,
            "zolab.baselines.AdamW": AdamW,
            "zolab.baselines.ZeroShot": ZeroShot,
        },
    ),
    "optimizer.estimator": (
        "_target_",
        {
            "zolab.optim.TwoSided": TwoSided,
            "zolab.optim.OneSided": OneSided,
            "zolab.optim.OnePoint": OnePoint,
        },
    ),
    "optimizer.direction": (
        "_target_",
        {
            "zolab.optim.Gaussian": Gaussian,
            "zolab.optim.Rademacher": Rademacher,
            "zolab.optim.Subspace": Subspace,
            "zolab.optim.LazyLowRank": LazyLowRank,
        },
    ),
    "optimizer.rule": (
        "_target_",
        {
            "zolab.optim.Sgd": Sgd,
            "zolab.optim.Momentum": Momentum,
            "zolab.optim.Adam": Adam,
            "zolab.optim.Sign": Sign,
            "zolab.optim.FactorMomentum": FactorMomentum,
            "zolab.optim.Helene": Helene,
        },
    ),
    "optimizer.placement": (
        "_target_",
        {
            "auto": Auto,
            "zolab.optim.InPlace": InPlace,
            "zolab.optim.Paired": Paired,
            "zolab.optim.PerLayer": PerLayer,
        },
    ),
    "sparsity": (
        "_target_",
        {
            "zolab.optim.Dense": Dense,
            "zolab.optim.SmallWeights": SmallWeights,
            "zolab.optim.LargeWeights": LargeWeights,
            "zolab.optim.RandomMask": RandomMask,
            "zolab.optim.LayerMask": LayerMask,
        },
    ),
    "task": ("kind", {"classification": Classification}),
    "launcher": ("kind", {"local": LocalLauncher, "slurm": SlurmLauncher}),
}

#: target -> dataclass over all slots that are built from classes.
TARGETS: dict[str, type] = {
    target: cls
    for chooser, choices in PARTS.values()
    if chooser == "_target_"
    for target, cls in choices.items()
}
