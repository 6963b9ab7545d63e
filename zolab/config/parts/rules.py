"""What is done with an estimate: update rules."""

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option

_HISTORY = {
    "choices": ("stored", "replayed"),
    "help": "moments kept as tensors, or made anew from the seeds and scalars of the last steps",
}
_WINDOW = {
    "min": 1,
    "help": "steps that replayed moments reach back; null: until beta^window < 1e-3",
}


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
