"""Where a step looks, and what coefficients the losses give: pure functions on floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One loss to evaluate: L(theta + scale * eps * z_probe)."""

    probe: int
    scale: float


@dataclass(frozen=True)
class Estimate:
    """What an estimator makes of the losses.

    Attributes:
        slopes: per probe, eps times the coefficient of z: c_j = slopes[j] / eps.
        loss: the loss to report, in nats.
    """

    slopes: tuple[float, ...]
    loss: float


class TwoSided:
    """SPSA, MeZO Algorithm 1 (arXiv 2305.17333): c = (L(θ + εz) - L(θ - εz)) / 2ε.

    With `num_probes` = n > 1 this is n-SPSA: n directions on the same batch, their estimates
    averaged (Definition 1). 2n forwards a step.
    """

    def __init__(self, num_probes: int = 1) -> None:
        if num_probes < 1:
            raise ValueError(f"estimator.num_probes = {num_probes}: expected at least 1")
        self.num_probes = num_probes

    def plan(self, step: int) -> list[Point]:
        """The points of a step, in the order they are evaluated; both signs of a probe adjoin."""
        return [Point(probe, sign) for probe in range(self.num_probes) for sign in (1.0, -1.0)]

    def combine(self, losses: Sequence[float]) -> Estimate:
        """Slopes and reported loss from the losses of `plan`, in its order."""
        pairs = list(zip(losses[0::2], losses[1::2], strict=True))
        return Estimate(
            slopes=tuple((plus - minus) / 2.0 for plus, minus in pairs),
            loss=sum(losses) / len(losses),
        )
