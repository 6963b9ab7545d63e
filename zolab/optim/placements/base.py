"""The interface of placements."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zolab.optim import fast
from zolab.optim.engine import Engine, Update, half_precision
from zolab.optim.memory import Memory
from zolab.optim.parameters import ParamInfo

if TYPE_CHECKING:
    from zolab.optim.rules import Rule
    from zolab.optim.walks import Walk

#: A closure gives one loss per copy of the batch: `closure(1)` -> one, `closure(2)` -> two, from a
#: batch whose rows are doubled along dimension 0 (first all rows, then all rows again).
Closure = Callable[[int], Sequence[float]]


@dataclass(frozen=True)
class Probe:
    """One direction of a step with the signs it is evaluated at, in order."""

    seed: int
    scales: tuple[float, ...]


class Placement:
    """Evaluates losses at perturbed weights and applies updates.

    Attributes:
        name: name in configs.
        needs_model: True when the modules that own the parameters must be known.
        keeps_weights: True when the parameters hold the weights at all times (clean or perturbed);
            False when those of the last steps may be elsewhere until `flush`.
        holds_masks: True when the masks of a step are kept until its update is in.
        rounds: True when 16-bit weights are rounded stochastically.
    """

    name: str
    needs_model = False
    keeps_weights = True
    holds_masks = False
    rounds = False

    def bind(self, engine: Engine, rule: Rule, model: nn.Module | None, seed: int) -> None:
        """Called once, before the first step."""
        self.engine = engine
        self.rule = rule

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        """The losses at theta + scale * eps * z for every probe and scale, in order.

        Args:
            probes: directions and scales.
            eps: perturbation scale of each parameter group.
            closure: see `Closure`.
        """
        raise NotImplementedError

    def memory(self, both: bool) -> Memory:
        """What evaluating losses takes beside the weights and a forward's activations.

        Args:
            both: whether a step has probes to both sides.
        """
        return Memory(state=0, copies=1, probing=0, between=0)

    def walk(self, probes: Sequence[Probe], eps: Sequence[float]) -> None:
        """Leave in the weights what `losses` would leave (rounding), without any forward."""

    def update(self, update: Update | None) -> None:
        """Apply a step; None (a non-finite loss) changes nothing but ends the step."""
        raise NotImplementedError

    def rest(self) -> None:
        """Take the perturbation out of the weights between `losses` or `walk` and `update`."""

    def flush(self) -> None:
        """Make the weights clean: apply whatever was deferred. Safe to call at any time."""

    def forget(self) -> None:
        """Drop whatever was deferred: the weights are, or will be, replaced."""

    def unbind(self) -> None:
        """Another placement takes over: leave nothing on the model."""

    def load_weights(
        self, params: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
    ) -> None:
        """Replace weights, by the names of `params`; whatever was deferred is dropped."""
        self.forget()
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(tensors[name])


class _Single:
    """A closure without argument as a `Closure`."""

    def __init__(self, closure: Callable[[], object]) -> None:
        self.closure = closure

    def __call__(self, copies: int) -> Sequence[float]:
        if copies != 1:
            raise TypeError(
                "the closure does not take the number of copies, but placement paired asks for the "
                "losses of a doubled batch: make it `lambda copies: [one loss per copy]` or choose "
                "placement=PerLayer() or InPlace()"
            )
        return [self.closure()]


def as_closure(closure: Callable) -> Closure:
    """A closure as placements call it; one that does not take the number of copies gives one loss.

    It takes it if it has a parameter without default or one named copies: the default of another
    (`lambda batch=batch: ...`) is there to bind something.
    """
    try:
        parameters = inspect.signature(closure).parameters.values()
    except ValueError:  # a builtin that tells nothing
        return closure
    for parameter in parameters:
        needed = parameter.default is parameter.empty or parameter.name == "copies"
        if needed and parameter.kind is not parameter.KEYWORD_ONLY:
            return closure
    return _Single(closure)


def apply_now(
    engine: Engine, rule: Rule, update: Update, walks: Sequence[Walk] | None = None
) -> None:
    """Apply an update to clean weights; 16-bit weights are rounded stochastically.

    Args:
        engine, rule, update: what is applied to what.
        walks: as `zolab.optim.walks.walks` gives them; None goes from one parameter to the next.
    """
    with fast.together():
        for walk in walks or ():
            first = walk.infos[0]
            terms = rule.terms(update, first.group, half_precision(first.data))
            if not walk.sweep(terms):
                for info in walk.infos:
                    apply_to(engine, rule, info, update)
        for info in engine.infos if walks is None else ():
            apply_to(engine, rule, info, update)


def apply_to(engine: Engine, rule: Rule, info: ParamInfo, update: Update) -> None:
    """The same for one parameter."""
    stochastic = half_precision(info.data)
    mask = engine.mask_of(info) if rule.alone else engine.choice_of(info, state=rule.stateful)
    rule.apply_(engine, info, engine.scaled(update, info), mask, stochastic)
