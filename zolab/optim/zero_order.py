"""The driver: one zeroth-order step from five parts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.directions import Direction, Gaussian
from zolab.optim.engine import Engine, Update
from zolab.optim.estimators import Estimator, TwoSided
from zolab.optim.keys import probe_seed
from zolab.optim.late import Unread, finite, to_digits
from zolab.optim.masks import Dense
from zolab.optim.memory import Memory, memory_of
from zolab.optim.noise import root_mean_square, rounding_unit
from zolab.optim.parameters import check_group, collect
from zolab.optim.placements import Placement, Probe, default_placement
from zolab.optim.placements.base import Closure, as_closure
from zolab.optim.rules import Rule, Sgd

#: Raised whenever any bit of an update could change; a replay under another value is refused.
NUMERICS = 3


@dataclass(frozen=True)
class StepRecord:
    """What happened in a step: everything a log or a replay needs.

    Attributes:
        step: step number, from 1.
        lr: learning rate of the first parameter group.
        losses: in the order evaluated, nats.
        coefficients: per probe, the projected gradient for the first group's eps; None when a loss
            was not finite and the step was skipped.
        loss: the loss the estimator reports.
        num_forwards: forward passes on the mini-batch.
        extra: what the method decided by value beyond the coefficients, JSON-able; None for most.
    """

    step: int
    lr: float
    losses: tuple[float, ...]
    coefficients: tuple[float, ...] | None
    loss: float
    num_forwards: int
    extra: dict[str, Any] | None = None

    @property
    def projected_grad(self) -> float:
        """Coefficient of the first probe; NaN for a skipped step."""
        return self.coefficients[0] if self.coefficients else math.nan

    def read(self) -> StepRecord:
        """The record itself: its numbers are here (see `late.Unread`)."""
        return self


class ZeroOrder(torch.optim.Optimizer):
    """Forward-only optimizer: estimator × direction × mask × rule × placement.

    Args:
        params: parameters, `model.named_parameters()` or parameter groups of either; groups may
            set lr, eps and weight_decay. Names reach masks and noise, so give named parameters.
        lr: learning rate η.
        eps: perturbation scale ε > 0.
        weight_decay: decoupled decay λ: weights shrink by the factor 1 - ηλ a step.
        estimator, direction, mask, rule, placement: the parts; defaults make MeZO.
        seed: run seed, 0 <= seed < 2**64; each probe's direction is a function of (seed, step,
            probe, parameter, element) alone.
        model: the module that owns the parameters; required by `Paired` and `PerLayer`. With it,
            parameter ids count all its parameters, so freezing one does not move the others'.
        seeds: (step, probe) -> seed of a direction, in place of the keyed seeds of `seed`: for
            parity with programs that draw theirs from a generator of their own.

    Raises:
        ValueError: an argument out of range, or a parameter that cannot be trained, by name.

    Example:
        >>> optimizer = ZeroOrder(model.named_parameters(), lr=1e-6)  # doctest: +SKIP
        >>> loss = optimizer.step(lambda copies: [loss_of(model, batch)])  # doctest: +SKIP
    """

    #: Why all weights must be in the parameters between steps; None if they need not be.
    needs_weights: str | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        estimator: Estimator | None = None,
        direction: Direction | None = None,
        mask: Dense | None = None,
        rule: Rule | None = None,
        placement: Placement | None = None,
        seed: int = 0,
        model: nn.Module | None = None,
        seeds: Callable[[int, int], int] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            check_group(group)
        probe_seed(seed, 0, 0)  # refuses a seed out of range
        self.seed = seed
        self._seeds = seeds
        self._planned: tuple[int, list[Probe]] | None = None
        self.num_steps = 0
        self.taken: StepRecord | Unread | None = None
        self.estimator = estimator or TwoSided()
        self.direction = direction or Gaussian()
        self.mask = mask or Dense()
        self.rule = rule or Sgd()
        self.table, self.infos = collect(self.param_groups, model)
        self._model = model
        self._check_numbers()
        self.direction.check(self.mask)
        self.rule.check(self.direction)
        self.rule.check_mask(self.mask)
        self.mask.setup(self.infos, seed)
        self.mask.check_not_empty(self.infos)
        self.direction.setup(self.infos, seed)
        self.engine = Engine(self.infos, self.direction, self.mask)
        if self.rule.reach > 1 or getattr(self.estimator, "num_probes", 1) > 2:
            # More seeds in turn than `Kept` remembers: it would make all of z for each of them.
            self.engine.source = self.direction
        self.use_placement(
            placement or default_placement(self.infos, self.mask, self.direction, model)
        )
        exact = any(info.param.dtype == torch.float64 for info in self.infos)
        # Nine digits are finer than fp32 and keep a journal row short; fp64 keeps them all.
        self._digits = 17 if exact else 9
        self._pending: tuple[StepRecord | Unread, Update | None] | None = None

    def use_placement(self, placement: Placement) -> None:
        """Evaluate and update through another placement from now on; flushes the present one."""
        if self.num_steps:
            self.flush()
        if self.needs_weights and not placement.keeps_weights:
            raise ValueError(f"placement {placement.name}: {self.needs_weights}; use another")
        if hasattr(self, "placement"):
            self.placement.unbind()
        self.placement = placement
        placement.bind(self.engine, self.rule, self._model, self.seed)

    # -- a step ----------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> float:
        """One step; returns the loss the estimator reports, in nats.

        Args:
            closure: gives one loss per copy of the batch (see `placements.base.Closure`), at the
                weights as they are and without a graph; without an argument, the loss of one copy.
                May be left out after `estimate`. Losses may be `Late`: where `waits_for`
                is None the step is then put in line on their device, and `taken.read()` waits for
                it.
        """
        if closure is not None:
            self.estimate(closure)
        if self._pending is None:
            raise RuntimeError("step() without a closure needs estimate(closure) before it")
        record, update = self._pending
        self._pending = None
        # Inference mode as in a replay: state made in one goes on in the other.
        with torch.inference_mode(), self.engine.clock.updating():
            self._finish(record.step, update, record.losses)
        self.taken = record
        return record.loss

    @property
    def last(self) -> StepRecord | None:
        """Record of the last step."""
        return None if self.taken is None else self.taken.read()

    @property
    def waits_for(self) -> str | None:
        """What needs to see the losses of a step at once; None where they may be late."""
        if type(self)._take is not ZeroOrder._take:
            return type(self).__name__
        parts = (self.estimator, self.rule)
        return next((type(part).__name__ for part in parts if not part.late), None)

    @torch.inference_mode()
    def estimate(self, closure: Closure) -> float:
        """The losses of the next step and its coefficients; `step()` then applies them."""
        step = self.num_steps + 1
        self._pending = self._take(step, self._begin(step), as_closure(closure))
        return self._pending[0].loss

    def _take(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord | Unread, Update | None]:
        """Evaluate a step; `_retrace` must leave the same bits from the record alone."""
        losses = self._losses(probes, closure)
        estimate = self.estimator.combine(losses)
        slopes, alive = finite(losses, estimate.slopes)
        record, update = self._record(step, losses, slopes, estimate.loss)
        if alive is None:
            return record, update
        return Unread(record, alive), replace(update, alive=alive)

    def _record(
        self,
        step: int,
        losses: tuple[float, ...],
        slopes: tuple[float, ...] | None,
        loss: float,
        extra: dict[str, Any] | None = None,
    ) -> tuple[StepRecord, Update | None]:
        """Record and update of a step; `slopes` None when it is skipped."""
        eps, lr = self.param_groups[0]["eps"], self.param_groups[0]["lr"]
        if slopes is None:
            return StepRecord(step, lr, losses, None, loss, len(losses), extra), None
        coefficients = tuple(slope / eps for slope in slopes)
        record = StepRecord(step, lr, losses, coefficients, loss, len(losses), extra)
        # From the coefficients, as a replay has them: s / eps * eps is not always s.
        return record, self._update(step, tuple(c * eps for c in coefficients))

    def _losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[float, ...]:
        """The losses of the probes, as the journal will hold them."""
        raw = self.reduce(self.placement.losses(probes, self.values("eps"), closure))
        if len(raw) != sum(len(probe.scales) for probe in probes):
            raise RuntimeError(f"closure gave {len(raw)} losses for {probes}")
        if self.waits_for is not None:
            raw = [float(loss) for loss in raw]
        return tuple(to_digits(loss, self._digits) for loss in raw)

    def reduce(self, losses: list[float]) -> list[float]:
        """Hook for data parallelism: combine this process's losses with those of the others."""
        return losses

    def memory(self) -> Memory:
        """What the method takes beside the weights and a forward's activations, as declared."""
        return memory_of(self)

    def flush(self) -> None:
        """Make the weights clean; call before evaluating or saving. Never changes a trajectory."""
        with torch.inference_mode():
            self.placement.flush()

    @torch.inference_mode()
    def replay(
        self,
        step: int,
        lr: float,
        coefficients: Sequence[float] | None,
        extra: dict[str, Any] | None = None,
        losses: Sequence[float] = (),
    ) -> None:
        """Repeat a recorded step without any forward: same bits as the step itself left.

        Args:
            step: the step's number; must follow the last one.
            lr: learning rate it was taken with.
            coefficients: what `StepRecord.coefficients` held; None for a skipped step.
            extra: what `StepRecord.extra` held.
            losses: what `StepRecord.losses` held; needed to go on from here with an estimator that
                reuses the losses of an earlier step, not for the weights.
        """
        if step != self.num_steps + 1:
            raise ValueError(f"replay of step {step}: expected step {self.num_steps + 1}")
        slopes = None
        if coefficients is not None:
            slopes = tuple(c * self.param_groups[0]["eps"] for c in coefficients)
        lrs = (lr, *self.values("lr")[1:])
        update = self._retrace(step, self._begin(step), slopes, lrs, extra or {})
        self._finish(step, update, tuple(losses))

    def _retrace(
        self,
        step: int,
        probes: list[Probe],
        slopes: tuple[float, ...] | None,
        lr: tuple[float, ...],
        extra: dict[str, Any],
    ) -> Update | None:
        """Leave in the weights what `_take` left; returns the update it returned."""
        self.placement.walk(probes, self.values("eps"))
        return None if slopes is None else self._update(step, slopes, lr)

    def _finish(self, step: int, update: Update | None, losses: tuple[float, ...]) -> None:
        """Hand in the update and end the step, taken or replayed."""
        if update is not None:
            self.rule.note(update)
        self.placement.update(update)
        self.estimator.note(losses)
        self.num_steps = step

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict, with the step counter, the seed, rule state and mask thresholds."""
        self.flush()
        out = super().state_dict()
        out["zero_order"] = {
            "step": self.num_steps,
            "seed": self.seed,
            "tensors": self.tensors(),
            "mask": self.mask.state(),
        }
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; the weights are the caller's to restore."""
        mine = state_dict["zero_order"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zero_order"})
        self.seed = self.mask.run_seed = mine["seed"]
        self._planned = self._pending = None
        self.placement.forget()
        self.direction.setup(self.infos, self.seed)
        self.mask.load_state(mine["mask"])
        self.engine.forget()
        self.load_tensors(mine["tensors"], mine["step"])

    def tensors(self) -> dict[str, Tensor]:
        """What the parts keep beside the weights and the journal cannot skip: `part/name`."""
        parts = {
            "rule": self.rule.state(),
            "mask": self.mask.tensors(),
            "estimator": self.estimator.state(),
        }
        return {f"{part}/{k}": v for part, held in parts.items() for k, v in held.items()}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave after `step` steps."""
        held: dict[str, dict[str, Tensor]] = {"rule": {}, "mask": {}, "estimator": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            held.setdefault(part, {})[name] = value
        self.rule.load_state(held["rule"])
        self.mask.load_tensors(held["mask"])
        self.estimator.load_state(held["estimator"])
        self.num_steps = step

    # -- helpers ---------------------------------------------------------------------------------

    def _begin(self, step: int) -> list[Probe]:
        """Tell the parts that a step begins; returns its probes."""
        probes = self._probes(step)
        if self.mask.due(step) or self.direction.due(step):
            self.flush()  # new thresholds are read from clean weights, old factors are dropped
        if self.mask.due(step):
            self.mask.refresh(self.infos)
        self.engine.step = step
        self.direction.begin(step, [probe.seed for probe in probes])
        return probes

    def values(self, key: str) -> tuple[float, ...]:
        """One value per parameter group."""
        return tuple(group[key] for group in self.param_groups)

    def seed_of(self, step: int, probe: int) -> int:
        """Seed of one direction of a step."""
        return self._seeds(step, probe) if self._seeds else probe_seed(self.seed, step, probe)

    def _probes(self, step: int) -> list[Probe]:
        if self._planned is None or self._planned[0] != step:
            scales: dict[int, list[float]] = {}
            for point in self.estimator.plan(step):
                scales.setdefault(point.probe, []).append(point.scale)
            probes = [Probe(self.seed_of(step, j), tuple(s)) for j, s in scales.items()]
            self._planned = (step, probes)
        return self._planned[1]

    def _update(
        self, step: int, slopes: tuple[float, ...], lr: Sequence[float] | None = None
    ) -> Update:
        return Update(
            step=step,
            seeds=tuple(probe.seed for probe in self._probes(step)),
            slopes=slopes,
            lr=tuple(lr or self.values("lr")),
            eps=self.values("eps"),
            weight_decay=self.values("weight_decay"),
        )

    def _check_numbers(self) -> None:
        """Warn when eps is lost in the rounding of the weights it is added to."""
        for info in self.infos:
            eps = self.param_groups[info.group]["eps"]
            size = root_mean_square(info.data)
            unit = rounding_unit(info.param.dtype, size)
            if eps < unit:
                warnings.warn(
                    f"eps = {eps:g} is below the rounding unit {unit:.2g} of {info.name} "
                    f"({info.param.dtype}, rms {size:.2g}): most of the perturbation is lost",
                    stacklevel=3,
                )
                return
