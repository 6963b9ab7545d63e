"""Each recorded program as a composition of our parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.trace import NotUnderstood, Trace
from zolab.optim import (
    Adam,
    BlockWise,
    Conservative,
    ForwardGrad,
    InPlace,
    Momentum,
    OneSided,
    Reference,
    Sgd,
    Sign,
    TwoSided,
    ZeroOrder,
)
from zolab.optim.backend import Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.estimators import Estimate, Estimator, Point
from zolab.optim.moments import Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements import Placement
from zolab.optim.reference import ReferenceSgd
from zolab.optim.rules import Rule
from zolab.optim.rules.gradient import chunks, gradient, kept
from zolab.optim.rules.sign import scalar_sign

#: Names whose parameters a program does not decay.
EXEMPT = {
    "mezo_large": ("bias", "layer_norm", "layernorm"),
    "zo2": ("bias", "layer_norm", "layernorm", "ln"),
    "mezo_medium": (),
    "mezo_medium trainer": ("bias", "LayerNorm.weight"),
    "zobench": ("bias", "layer_norm", "layernorm"),
}


class Seeds:
    """Seeds from numpy's legacy generator, drawn when first asked for, in the program's order."""

    def __init__(self, np_seed: int, extra: bool) -> None:
        self._random = np.random.RandomState(np_seed)
        self._extra = extra
        self._drawn: dict[int, list[int]] = {}
        self.sparse: dict[int, int] = {}

    def __call__(self, step: int, probe: int) -> int:
        if step not in self._drawn:
            if self._extra:  # drawn at the start of every step, used or not
                self.sparse[step] = self._draw()
            self._drawn[step] = []
        drawn = self._drawn[step]
        while len(drawn) <= probe:
            drawn.append(self._draw())
        return drawn[probe]

    def of(self, step: int) -> list[int]:
        return self._drawn.get(step, [])

    def _draw(self) -> int:
        return int(self._random.randint(1000000000))


class Watched(InPlace):
    """The official walk, and how far it left the weights from where they started."""

    def __init__(self) -> None:
        super().__init__(sweeps="official")
        self.drift = 0.0
        self._before: dict[int, Tensor] = {}

    def losses(self, probes: Sequence, eps: Sequence[float], closure: Any) -> list[float]:
        self._before = {info.pid: info.data.clone() for info in self.engine.infos}
        return super().losses(probes, eps, closure)

    def update(self, update: Update | None) -> None:
        infos = self.engine.infos
        moved = [float((info.data - self._before[info.pid]).abs().max()) for info in infos]
        self.drift = max(moved)
        super().update(update)


class InDtype(Estimator):
    """Another estimator, with its differences taken as tensors of the loss's dtype."""

    def __init__(self, inner: TwoSided | OneSided, eps: float, dtype: torch.dtype) -> None:
        self.inner, self.eps, self.dtype = inner, eps, dtype
        self.num_probes = inner.num_probes

    def plan(self, step: int) -> list[Point]:
        return self.inner.plan(step)

    def combine(self, losses: Sequence[float]) -> Estimate:
        loss = self.inner.combine(losses).loss
        wide = torch.tensor(losses, dtype=self.dtype)
        two_sided = isinstance(self.inner, TwoSided)
        c = (wide[0::2] - wide[1::2]) / ((2 if two_sided else 1) * self.eps)
        return Estimate(tuple(float(x) * self.eps for x in c), loss)


class Signed(Rule):
    """Signs of the scalars, handed to another rule."""

    def __init__(self, inner: Rule) -> None:
        self.inner = inner
        self.stateful, self.alone = inner.stateful, inner.alone

    def terms(self, update: Update, group: int, stochastic: bool) -> list:
        return self.inner.terms(scalar_sign(update), group, stochastic)

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        return self.inner.moves(engine, info, scalar_sign(update), stochastic)

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Any, stochastic: bool
    ) -> None:
        self.inner.apply_(engine, info, scalar_sign(update), mask, stochastic)


class CoupledMomentum(Momentum):
    """torch's SGD: the decay is part of the gradient, so it goes through the momentum too."""

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Any, stochastic: bool
    ) -> None:
        decay = update.weight_decay[info.group]
        move = Term(-update.lr[info.group], update.seeds[0], 1.0, stochastic)
        for chunk in chunks(info, mask):
            m = kept(self._m, info)[chunk.start : chunk.start + len(chunk.weight)]
            m.mul_(self.beta).add_(gradient(engine, info, update, chunk))
            m.add_(chunk.weight, alpha=decay)
            apply_term_(chunk.weight, m, move, info.pid, chunk.start, chunk.mask)


def make_optimizer(
    trace: Trace,
    model: nn.Module,
    named: dict[str, nn.Parameter],
    placement: Placement | None = None,
) -> tuple[ZeroOrder, Seeds]:
    """The optimizer that repeats the trace, and where its seeds come from.

    Args:
        trace: of any program.
        model: rebuilt at its start.
        named: its parameters.
        placement: another one than the program's in-place walk.
    """
    hyper = trace.hyper
    seeds = Seeds(hyper["np_seed"], trace.program == "zobench")
    groups = _groups(trace, named)
    common: dict[str, Any] = {"lr": hyper["lr"], "seeds": seeds}
    trainer = hyper.get("trainer", "zo_sgd")
    if trainer == "forward_grad":
        return ForwardGrad(
            groups, direction=Reference(trace.order), rule=_rule(trace), model=model, **common
        ), seeds
    common |= {"eps": hyper["zo_eps"], "estimator": _estimator(trace)}
    common |= {"placement": placement or Watched(), "model": model if placement else None}
    if hyper.get("module_wise_perturbation"):
        optimizer = BlockWise(
            groups, coordinate=bool(hyper.get("coordinate_perturbation")), outside=_outside(trace),
            direction=Reference(), rule=_rule(trace), **common,
        )  # fmt: skip
        return optimizer, seeds
    common["direction"] = Reference(trace.order)
    if trainer == "zo_conserv":
        if hyper.get("optimizer", "sgd") != "sgd" or hyper.get("momentum"):
            raise NotUnderstood("zo_conserv with an optimizer that keeps state")
        return Conservative(groups, **common), seeds
    return ZeroOrder(groups, rule=_rule(trace), **common), seeds


def _groups(trace: Trace, named: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Trained parameters, with and without weight decay."""
    decay = trace.hyper.get("weight_decay") or 0.0
    program = trace.program
    if program == "zobench" and trace.hyper.get("trainer") != "forward_grad":
        decay = 0.0  # ignored by every zo_* trainer
    if program == "mezo_medium" and trace.hyper.get("zero_order_use_trainer_optim"):
        program = "mezo_medium trainer"
    trained = [(name, named[name]) for name in trace.order]
    if decay == 0.0:
        return [{"params": trained}]
    exempt = [any(mark in name for mark in EXEMPT[program]) for name in trace.order]
    out = []
    for is_exempt, rate in ((False, decay), (True, 0.0)):
        part = [pair for pair, free in zip(trained, exempt, strict=True) if free == is_exempt]
        if part:
            out.append({"params": part, "weight_decay": rate})
    return out


def _loss_dtype(trace: Trace) -> torch.dtype:
    return trace.dtype if trace.objective == "loss" else torch.float32


def _estimator(trace: Trace) -> Estimator:
    hyper = trace.hyper
    if trace.program == "zobench":
        n, schedule = int(hyper.get("q") or 1), "constant"
    elif trace.program == "mezo_medium" and hyper.get("zero_order_use_trainer_optim"):
        n = int(hyper.get("zero_order_sample") or 1)
        schedule = hyper.get("zero_order_sample_scheduler") or "constant"
    else:
        n, schedule = 1, "constant"
    steps = hyper["steps"] if schedule == "linear" else None
    if hyper.get("perturbation_mode") == "one_side":
        inner: TwoSided | OneSided = OneSided(n, shared=False)
    else:
        inner = TwoSided(n, schedule, steps)
    dtype = _loss_dtype(trace)
    if dtype == torch.float64 or hyper.get("trainer") == "zo_conserv":
        return inner
    return InDtype(inner, hyper["zo_eps"], dtype)


def _rule(trace: Trace) -> Rule:
    hyper = trace.hyper
    name = hyper.get("optimizer", "sgd")
    if trace.program == "mezo_medium" and hyper.get("zero_order_use_trainer_optim"):
        return Sgd() if name == "sgd" else Adam(form="transformers")
    if trace.program != "zobench":
        return Sgd() if trace.dtype == torch.float64 else ReferenceSgd()
    trainer = hyper.get("trainer", "zo_sgd")
    if trainer == "zo_adam" or name == "adam":
        inner: Rule = Adam()
    elif hyper.get("momentum"):
        # The zo_* trainers ignore weight decay, so only here does its place matter.
        kind = CoupledMomentum if trainer == "forward_grad" else Momentum
        inner = kind(hyper["momentum"])
    else:
        inner = Sgd()
    if trainer != "zo_sign_opt":
        return inner
    return Sign() if type(inner) is Sgd else Signed(inner)


def _outside(trace: Trace) -> str:
    """Whether the run had blocks besides the layers: its number of losses says so."""
    layers = trace.config["num_hidden_layers"]
    losses = len(trace.steps[0]["losses"])
    if losses == 2 * layers:
        return "frozen"
    modules = {
        name.rpartition(".")[0]
        for name in trace.order
        if not any(p.isdigit() for p in name.split("."))
    }
    if losses == 2 * (layers + len(modules)):
        return "blocks"
    raise NotUnderstood(f"block-wise: {losses} losses a step for {layers} layers")


def expected_rates(trace: Trace) -> list[float]:
    """The rate of each step by the schedule; where the program ignores that, as recorded."""
    lr, total = trace.hyper["lr"], trace.hyper["steps"]
    linear = trace.hyper.get("lr_scheduler", "constant") == "linear"
    out = []
    for step in trace.steps:
        planned = lr * (1.0 - step["step"] / total) if linear else lr
        recorded = step.get("lr", planned)
        if abs(recorded - planned) > 1e-12 * lr and recorded != lr:
            raise NotUnderstood(f"step {step['step']}: lr = {recorded}, expected {planned}")
        out.append(recorded)
    return out


def planned_scales(optimizer: ZeroOrder, trace: Trace, step: int) -> list[int]:
    """Multiples of eps z added in a step, in order, walks of all blocks included."""
    if isinstance(optimizer, ForwardGrad):
        return []
    walk: list[float] = []
    by_probe: dict[int, list[float]] = {}
    for point in optimizer.estimator.plan(step):
        by_probe.setdefault(point.probe, []).append(point.scale)
    for scales in by_probe.values():
        at = 0.0
        for scale in (*scales, 0.0):
            if scale != at:
                walk.append(scale - at)
            at = scale
    blocks = len(optimizer.blocks) if isinstance(optimizer, BlockWise) else 1
    return [int(x) for x in walk] * blocks
