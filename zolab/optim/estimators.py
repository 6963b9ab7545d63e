"""Where a step looks, and what coefficients the losses give: arithmetic on a few floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("constant", "linear", "power")


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


class Estimator:
    """Base of the estimators.

    Attributes:
        late: True when `combine` is arithmetic alone and `note` nothing, so that losses may be
            numbers which the host has not read (`late.Late`).
    """

    late = False

    def plan(self, step: int) -> list[Point]:
        """The points of a step (from 1), in the order evaluated; those of a probe adjoin."""
        raise NotImplementedError

    def combine(self, losses: Sequence[float]) -> Estimate:
        """Slopes and reported loss from the losses of `plan`, in its order."""
        raise NotImplementedError

    def note(self, losses: Sequence[float]) -> None:
        """Called at the end of each step, taken or replayed, with its losses."""

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; empty for estimators that look at one step alone."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class _Queries(Estimator):
    """How many directions a step has, for the estimators that may have several.

    Args:
        num_probes: n, the number of directions, or the most of them under a schedule.
        schedule: "constant"; "linear", max(1, floor(t / num_steps * n)) with t from 0 (MeZO's
            growing n); "power", min(max(floor(beta * e**alpha), 1), n) in epoch e from 1
            (AdaZeta, arXiv 2406.18060).
        num_steps: steps of the whole run, for "linear".
        beta, alpha: of "power".
        epoch_steps: steps of an epoch, for "power".
    """

    late = True

    def __init__(
        self,
        num_probes: int = 1,
        schedule: str = "constant",
        num_steps: int | None = None,
        beta: float = 1.0,
        alpha: float = 0.5,
        epoch_steps: int | None = None,
    ) -> None:
        if num_probes < 1:
            raise ValueError(f"estimator.num_probes = {num_probes}: expected at least 1")
        if schedule not in SCHEDULES:
            raise ValueError(
                f"estimator.schedule = {schedule!r}: expected one of {', '.join(SCHEDULES)}"
            )
        for name, value, needed in (
            ("num_steps", num_steps, schedule == "linear"),
            ("epoch_steps", epoch_steps, schedule == "power"),
        ):
            if needed and (value is None or value < 1):
                raise ValueError(
                    f"estimator.{name} = {value}: schedule {schedule} needs a number >= 1"
                )
        if not (beta > 0.0 and alpha >= 0.0):
            raise ValueError(
                f"estimator.beta = {beta}, estimator.alpha = {alpha}: expected > 0 and >= 0"
            )
        self.num_probes = num_probes
        self.schedule = schedule
        self.num_steps = num_steps
        self.beta = beta
        self.alpha = alpha
        self.epoch_steps = epoch_steps

    def num_at(self, step: int) -> int:
        """Number of directions of a step, from 1."""
        if self.schedule == "linear":
            # In this order and in floating point, as the published program counts.
            grown = max(1, int((step - 1) / self.num_steps * self.num_probes))
            return min(grown, self.num_probes)
        if self.schedule == "power":
            epoch = (step - 1) // self.epoch_steps + 1
            return min(max(math.floor(self.beta * epoch**self.alpha), 1), self.num_probes)
        return self.num_probes


class TwoSided(_Queries):
    """SPSA, MeZO Algorithm 1 (arXiv 2305.17333): c = (L(θ + εz) - L(θ - εz)) / 2ε.

    With n > 1 directions this is n-SPSA: n directions on the same batch, their estimates averaged
    (Definition 1). 2n forwards a step. Arguments: see `_Queries`.
    """

    def plan(self, step: int) -> list[Point]:
        return [Point(probe, sign) for probe in range(self.num_at(step)) for sign in (1.0, -1.0)]

    def combine(self, losses: Sequence[float]) -> Estimate:
        pairs = list(zip(losses[0::2], losses[1::2], strict=True))
        return Estimate(
            slopes=tuple((plus - minus) / 2.0 for plus, minus in pairs),
            loss=sum(losses) / len(losses),
        )


class OneSided(_Queries):
    """Forward differences: c_j = (L(θ + εz_j) - L(θ)) / ε, estimates averaged.

    As in ZO-Bench (arXiv 2402.11592, `one_side`): L(θ + εz) is evaluated first, then L(θ).

    Args:
        num_probes: n directions; n + 1 forwards a step with a shared L(θ), 2n without.
        shared: evaluate L(θ) once a step, after the last direction; False evaluates it again for
            each direction, as that program does.
        schedule, num_steps, beta, alpha, epoch_steps: see `_Queries`.
    """

    def __init__(
        self,
        num_probes: int = 1,
        shared: bool = True,
        schedule: str = "constant",
        num_steps: int | None = None,
        beta: float = 1.0,
        alpha: float = 0.5,
        epoch_steps: int | None = None,
    ) -> None:
        super().__init__(num_probes, schedule, num_steps, beta, alpha, epoch_steps)
        self.shared = shared

    def plan(self, step: int) -> list[Point]:
        last = self.num_at(step) - 1
        out = []
        for probe in range(last + 1):
            out.append(Point(probe, 1.0))
            if not self.shared or probe == last:
                out.append(Point(probe, 0.0))
        return out

    def combine(self, losses: Sequence[float]) -> Estimate:
        if self.shared:
            *moved, clean = losses
            return Estimate(tuple(loss - clean for loss in moved), clean)
        pairs = list(zip(losses[0::2], losses[1::2], strict=True))
        return Estimate(tuple(moved - clean for moved, clean in pairs), losses[-1])


class OnePoint(Estimator):
    """One-point residual feedback (MeZO, arXiv 2305.17333).

    c_t = (L(θ_t + εz_t; B_t) - L(θ_{t-1} + εz_{t-1}; B_{t-1})) / ε, along z_t: 1 forward a step.
    The first step has nothing to compare with: c = 0. State: the last finite loss.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    def plan(self, step: int) -> list[Point]:
        return [Point(0, 1.0)]

    def combine(self, losses: Sequence[float]) -> Estimate:
        (loss,) = losses
        return Estimate((0.0 if self._last is None else loss - self._last,), loss)

    def note(self, losses: Sequence[float]) -> None:
        if losses and math.isfinite(losses[0]):
            self._last = losses[0]

    def state(self) -> dict[str, Tensor]:
        return {} if self._last is None else {"last": torch.tensor(self._last, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._last = float(state["last"]) if "last" in state else None
