"""ZO-SGD-Cons: a step is taken only if it lowers the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from zolab.optim.engine import Update
from zolab.optim.estimators import Estimator, OneSided, TwoSided
from zolab.optim.memory import Memory
from zolab.optim.placements import Probe
from zolab.optim.placements.base import Closure
from zolab.optim.rules import Sgd
from zolab.optim.zero_order import StepRecord, ZeroOrder


class Conservative(ZeroOrder):
    """ZO-SGD-Cons of ZO-Bench (arXiv 2402.11592): the best of θ, θ - η c z and θ + η c z.

    All on the same batch: L(θ), the two losses of the estimate, L(θ - η c z), L(θ + η c z); the
    weights with the smallest of the first and the last two are kept. 5 forwards a step, no state.
    The candidates are points along the probe's own z, so every placement can evaluate them.

    Args:
        estimator: `TwoSided` or `OneSided`, one direction.
        params, lr, eps, options: see `ZeroOrder`; a rule is not among them.

    Raises:
        ValueError: several directions, weight decay, or a direction with a factor of its own: the
            candidates would not be points along one z.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        *,
        estimator: Estimator | None = None,
        **options: Any,
    ) -> None:
        estimator = estimator or TwoSided()
        if not isinstance(estimator, TwoSided | OneSided) or estimator.num_probes != 1:
            raise ValueError("estimator: ZO-SGD-Cons compares points along one direction, so it "
                             "takes two_sided or one_sided with num_probes = 1")  # fmt: skip
        super().__init__(params, lr, eps, estimator=estimator, rule=Sgd(), **options)
        if any(self.values("weight_decay")):
            raise ValueError("weight_decay: ZO-SGD-Cons has none, its candidates lie along z")
        if any(self.direction.gain(info.pid) != 1.0 for info in self.infos):
            raise ValueError(
                f"direction: ZO-SGD-Cons cannot go with {type(self.direction).__name__}, whose "
                "estimate is scaled: its candidates would not be where the update goes"
            )

    def memory(self) -> Memory:
        return replace(super().memory(), copies=1)  # its points are evaluated one at a time

    def _take(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord, Update | None]:
        (probe,) = probes
        losses = self._losses([Probe(probe.seed, (0.0, *probe.scales))], closure)
        if not all(math.isfinite(loss) for loss in losses):
            return self._record(step, losses, None, losses[0])
        slopes = self.estimator.combine(losses[1:]).slopes
        record, update = self._record(step, losses, slopes, losses[0])
        raw = self.reduce(self.placement.losses(*self._candidates(update), closure))
        both = tuple(float(f"{loss:.{self._digits}g}") for loss in raw)
        by_side = {0: losses[0], -1: both[0], 1: both[1]}
        kept = min(
            (side for side in by_side if math.isfinite(by_side[side])), key=by_side.__getitem__
        )
        record, _ = self._record(step, losses + both, slopes, losses[0], {"kept": kept})
        return record, self._kept(update, kept)

    def _retrace(
        self,
        step: int,
        probes: list[Probe],
        slopes: tuple[float, ...] | None,
        lr: tuple[float, ...],
        extra: dict[str, Any],
    ) -> Update | None:
        (probe,) = probes
        self.placement.walk([Probe(probe.seed, (0.0, *probe.scales))], self.values("eps"))
        if slopes is None:
            return None
        update = self._update(step, slopes, lr)
        self.placement.walk(*self._candidates(update))
        return self._kept(update, extra["kept"])

    def _candidates(self, update: Update) -> tuple[list[Probe], tuple[float, ...]]:
        """θ - η c z and θ + η c z as a probe, with the step of each group in place of eps."""
        steps = tuple(lr * update.coefficients(group)[0] for group, lr in enumerate(update.lr))
        return [Probe(update.seeds[0], (-1.0, 1.0))], steps

    def _kept(self, update: Update, kept: int) -> Update | None:
        """The update that leads to the weights kept: along -z c, along +z c, or none."""
        if kept == 0:
            return None
        return self._update(update.step, tuple(-kept * s for s in update.slopes), update.lr)
