"""Where losses are looked at: estimators, directions and placements."""

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option


@dataclass
class _Queries:
    num_probes: int = option(1, min=1, help="directions per step (n of n-SPSA), at most")
    schedule: str = option(
        "constant",
        choices=("constant", "linear", "power"),
        help="n directions; growing to n over the run; min(beta e^alpha, n) in epoch e",
    )
    num_steps: int | None = option(None, min=1, help="steps of the run, for schedule=linear")
    beta: float = option(1.0, above=0, help="factor of schedule=power")
    alpha: float = option(0.5, min=0, help="exponent of schedule=power")
    epoch_steps: int | None = option(None, min=1, help="steps of an epoch, for schedule=power")


@dataclass
class TwoSided(_Queries):
    """Loss at theta + eps z and theta - eps z (SPSA; MeZO, Alg. 1)."""


@dataclass
class OneSided(_Queries):
    """Loss at theta + eps z, then at theta (forward differences)."""

    shared: bool = option(True, help="one loss at theta for all directions of a step")


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
class InPlace:
    """Weights are perturbed in place and restored (MeZO)."""

    sweeps: str = option(
        "two",
        choices=("two", "official"),
        help="fused sweeps, or back after each probe and the update apart, as published programs",
    )


@dataclass
class Paired:
    """Both signs in one forward over the doubled batch; weights stay what they are."""


@dataclass
class PerLayer:
    """Each module perturbs its own weights on entry and puts the saved copy back on exit."""


_BLOCKS = r"(device|cpu|disk)(\*\d+)?"


@dataclass
class Offload:
    """As paired, with the layers in CPU memory or on disk, on the device only in turn (ZO2)."""

    tier: str = option(
        "auto",
        pattern=rf"auto|{_BLOCKS}(\+{_BLOCKS})*",
        expected="auto, cpu, disk, or numbers of blocks such as 'device*2+cpu*10+disk'",
        help="where the layers lie; auto fills the device, then CPU memory, then the disk",
        counted=False,
    )
    slots: int = option(3, min=2, help="layers on the device at a time", counted=False)
    write_back_every: int = option(
        8,
        min=0,
        help="updates after which a layer on disk is written anew; 0: only for evaluations",
        counted=False,
    )
    upload_only: bool = option(
        False, help="the host updates its own copy and nothing is downloaded", counted=False
    )
    transfer: str = option(
        "none",
        choices=("none", "float16", "bfloat16", "float8", "int8"),
        help="round weights to this on their way to the device; the host keeps the exact ones",
    )
    folder: str | None = option(
        None, help="for work files of the disk tier; null: the run directory", counted=False
    )


@dataclass
class Auto:
    """Left to the optimizer: in_place for float32, no mask and full rank; paired otherwise."""
