"""MeZO-SVRG: a control variate from an anchor whose gradient was estimated on the whole data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zolab.optim.directions import Direction
from zolab.optim.engine import Update
from zolab.optim.estimators import TwoSided
from zolab.optim.masks import Dense
from zolab.optim.memory import Memory, more
from zolab.optim.placements import Probe
from zolab.optim.placements.base import Closure
from zolab.optim.rules import Sgd
from zolab.optim.zero_order import StepRecord, ZeroOrder


class MeZOSVRG(ZeroOrder):
    """MeZO-SVRG (arXiv 2404.08080, Algorithm 1).

    Steps 1, 1 + q, 1 + 2q, ... set the anchor θ̃ ← θ, estimate g̃ = c̃ z̃ on the whole data and take
    θ ← θ - η1 g̃. The others draw one z, for θ and θ̃ on the same batch B, and take

        θ ← θ - η2 [c(θ; B) z - c(θ̃; B) z + g̃].

    g̃ is kept as its seed and scalar, so the state is the anchor alone, 1x the weights (the paper
    keeps both, 2x). 4 forwards a step, and 2 for each batch of the whole data on anchor steps. The
    authors' code estimates g̃ on the current batch, draws two different z (so nothing cancels) and
    aliases the anchor to the live weights; none of that is done here. Not included: their division
    of the rates by 5 when the epoch's loss grows, which is a schedule. YAML: optimizer=mezo_svrg.

    Set `full_batch` to a function that gives the closures of the batches of the whole (or a large)
    data set; their losses are averaged with equal weight. Left at None, the step's own batch stands
    for it.

    Args:
        lr: η2. A schedule of it scales η1 alike.
        anchor_lr: η1.
        anchor_every: q, steps.
        params, eps, weight_decay, direction, mask, options: see `ZeroOrder`; there is no estimator,
            and no rule but descent.
    """

    needs_weights = "MeZO-SVRG holds a second copy of the weights, the anchor, and swaps the two"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        anchor_lr: float = 1e-3,
        anchor_every: int = 2,
        direction: Direction | None = None,
        mask: Dense | None = None,
        **options: Any,
    ) -> None:
        if anchor_every < 1:
            raise ValueError(f"anchor_every = {anchor_every}: expected at least 1")
        if not anchor_lr >= 0.0:
            raise ValueError(f"anchor_lr = {anchor_lr}: expected a number >= 0")
        if mask is not None and not mask.static:
            raise ValueError(
                f"MeZO-SVRG with mask {type(mask).__name__}: both control terms and g̃ must see the "
                "same coordinates, so the mask may not change with the weights or the step"
            )
        if direction is not None and direction.kind is None:
            raise ValueError(
                f"MeZO-SVRG with direction {type(direction).__name__}: g̃ is kept as its seed, "
                "which must still mean the same direction many steps later"
            )
        super().__init__(
            params, lr, eps, weight_decay, estimator=TwoSided(), direction=direction, mask=mask,
            rule=Sgd(), **options,
        )  # fmt: skip
        self.anchor_lr, self.anchor_every = anchor_lr, anchor_every
        self._ratio = anchor_lr / lr if lr > 0.0 else 0.0
        self.full_batch: Callable[[], Iterable[Closure]] | None = None
        self._anchor: dict[str, Tensor] = {}
        self._anchored: int | None = None  # step whose g̃ is in force
        self._slope = 0.0  # eps times c̃

    def is_anchor(self, step: int) -> bool:
        """Whether a step (from 1) sets the anchor."""
        return (step - 1) % self.anchor_every == 0

    # -- hooks of the driver ---------------------------------------------------------------------

    def _take(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord, Update | None]:
        if self.is_anchor(step):
            self._set_anchor()
            return self._take_anchor(step, probes, closure)
        losses = self._losses(probes, closure)
        slope = (losses[0] - losses[1]) / 2.0
        slopes: tuple[float, ...] = (slope,)
        if self._anchored is not None:
            with self._at_anchor():
                losses += self._losses(probes, closure)
            slopes = (slope - (losses[2] - losses[3]) / 2.0, self._slope)
        finite = all(math.isfinite(loss) for loss in losses)
        return self._record(step, losses, slopes if finite else None, sum(losses[:2]) / 2)

    def _take_anchor(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord, Update | None]:
        whole = _Mean(list(self.full_batch()) if self.full_batch else [closure])
        plus, minus = self._losses(probes, whole)
        finite = math.isfinite(plus) and math.isfinite(minus)
        slopes = ((plus - minus) / 2.0,) if finite else None
        record, update = self._record(step, (plus, minus), slopes, (plus + minus) / 2)
        losses = tuple(float(f"{loss:.{self._digits}g}") for loss in whole.losses())
        return replace(record, losses=losses, num_forwards=len(losses)), update

    def _retrace(
        self,
        step: int,
        probes: list[Probe],
        slopes: tuple[float, ...] | None,
        lr: tuple[float, ...],
        extra: dict[str, Any],
    ) -> Update | None:
        if self.is_anchor(step):
            self._set_anchor()
        update = super()._retrace(step, probes, slopes, lr, extra)
        if not self.is_anchor(step) and self._anchored is not None:
            with self._at_anchor():
                self.placement.walk(probes, self.values("eps"))
        return update

    def _update(
        self, step: int, slopes: tuple[float, ...], lr: Sequence[float] | None = None
    ) -> Update:
        update = super()._update(step, slopes, lr)
        if self.is_anchor(step):
            self._anchored, self._slope = step, slopes[0]
            return replace(update, lr=tuple(value * self._ratio for value in update.lr))
        if self._anchored is None:
            return update
        seeds = (*update.seeds, self.seed_of(self._anchored, 0))
        # An update averages over its probes; these two are a sum.
        return replace(update, seeds=seeds, slopes=tuple(2.0 * slope for slope in slopes))

    # -- the anchor ------------------------------------------------------------------------------

    def _set_anchor(self) -> None:
        """The weights as they are become the anchor; it has no g̃ until the step succeeds."""
        self.placement.flush()
        self._anchored = None
        with torch.inference_mode(False):
            for info in self.infos:
                if info.name in self._anchor:
                    self._anchor[info.name].copy_(info.data)
                else:
                    self._anchor[info.name] = info.data.clone()

    def memory(self) -> Memory:
        anchor = sum(info.numel * info.param.element_size() for info in self.infos)
        return more(super().memory(), state=anchor)

    @contextmanager
    def _at_anchor(self) -> Iterator[None]:
        """While active, the parameters hold the anchor. In place, its walk leaves rounding too."""
        self.placement.rest()
        here = [info.param.data for info in self.infos]
        try:
            for info in self.infos:
                info.param.data = self._anchor[info.name]
            yield
            self.placement.rest()
        finally:
            for info, data in zip(self.infos, here, strict=True):
                info.param.data = data

    def tensors(self) -> dict[str, Tensor]:
        out = super().tensors() | {f"anchor/w.{k}": v for k, v in self._anchor.items()}
        if self._anchored is not None:
            out["anchor/step"] = torch.tensor(self._anchored)
            out["anchor/slope"] = torch.tensor(self._slope, dtype=torch.float64)
        return out

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        super().load_tensors(tensors, step)
        held = {k[7:]: v for k, v in tensors.items() if k.startswith("anchor/")}
        self._anchor = {
            info.name: held[f"w.{info.name}"].clone().to(info.data.device)
            for info in self.infos
            if f"w.{info.name}" in held
        }
        self._anchored = int(held["step"]) if "step" in held else None
        self._slope = float(held["slope"]) if "slope" in held else 0.0


class _Mean:
    """Several closures as one: the mean of their losses, and the losses one by one."""

    def __init__(self, closures: list[Closure]) -> None:
        if not closures:
            raise ValueError("full_batch gave no closure: expected at least one batch")
        self.closures = closures
        self._now: Closure = closures[0]
        self._signs: list[list[float]] = []  # per sign, one loss a closure

    def __call__(self, copies: int) -> list[float]:
        each = []
        for closure in self.closures:
            self._now = closure
            each.append([float(loss) for loss in closure(copies)])
        self._signs += [list(column) for column in zip(*each, strict=True)]
        return [sum(column) / len(each) for column in zip(*each, strict=True)]

    def leading_rows(self) -> Sequence[int]:
        """Row counts of the batch at hand, for `Paired`."""
        return getattr(self._now, "leading_rows", tuple)()

    def losses(self) -> list[float]:
        """All losses: plus and minus of the first closure, then of the next."""
        return [loss for both in zip(*self._signs, strict=True) for loss in both]
