"""The weights themselves are walked to theta + eps z and theta - eps z and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zolab.optim import fast
from zolab.optim.backend import Term
from zolab.optim.engine import Engine, Update, half_precision
from zolab.optim.late import number
from zolab.optim.moments import Step, has_state
from zolab.optim.noise import root_mean_square, rounding_unit
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.base import Closure, Placement, Probe
from zolab.optim.rules import Rule
from zolab.optim.walks import Walk, walks


class InPlace(Placement):
    """MeZO's in-place walk (arXiv 2305.17333, Algorithm 1) in two sweeps a step instead of four.

    The way back and the update of step t wait for the first sweep of step t + 1, which applies
    them together with that step's perturbation; way back and update along the same z are one term,
    rounded once. `flush` applies what waits, with the same bits. The walk leaves rounding in the
    weights (in fp32 about 1e-9 a step), which a replay repeats.

    The mask of a step is decided from the clean weights inside that first sweep and held, packed
    one bit a weight, until its update is in.

    Args:
        sweeps: "two" as above; "official" walks as the published programs do, for parity with
            their rounding: back to the start after each probe, the update at once and on its own.
    """

    name = "in_place"
    holds_masks = True

    def __init__(self, sweeps: str = "two") -> None:
        if sweeps not in ("two", "official"):
            raise ValueError(f"placement.sweeps = {sweeps!r}: expected two or official")
        self.sweeps = sweeps
        self._walks: list[Walk] | None = None
        self._stand: _Stand | None = None
        self._update: Update | None = None
        self._open = False  # a step has begun and its update has not been handed in

    def bind(self, engine: Engine, rule: Rule, model: nn.Module | None, seed: int) -> None:
        super().bind(engine, rule, model, seed)
        self._walks = walks(engine, rule)
        half = next((info for info in engine.infos if half_precision(info.data)), None)
        if half is not None:
            unit = rounding_unit(half.param.dtype, root_mean_square(half.data))
            warnings.warn(
                f"placement in_place with {half.param.dtype} weights: each walk to θ ± εz and back "
                f"rounds {half.name} to steps of {unit:.2g}, and smaller updates are lost; "
                "placement Paired() with model= keeps both",
                stacklevel=4,
            )

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        out = []
        for probe in probes:
            for scale in probe.scales:
                self._move(_Stand(probe.seed, scale, tuple(eps)))
                out.append(number(closure(1)[0]))
            if self.sweeps == "official":
                self.rest()
        return out

    def walk(self, probes: Sequence[Probe], eps: Sequence[float]) -> None:
        for probe in probes:
            for scale in probe.scales:
                self._move(_Stand(probe.seed, scale, tuple(eps)))
            if self.sweeps == "official":
                self.rest()

    def update(self, update: Update | None) -> None:
        self._update = update
        self._open = False
        if self.sweeps == "official":
            self.flush()

    def rest(self) -> None:
        if self._stand is not None:
            self._settle_all()

    def flush(self) -> None:
        if self._stand is not None or self._update is not None:
            self._settle_all()
        self.engine.drop_masks()

    def forget(self) -> None:
        self._stand = self._update = None
        self._open = False

    def _move(self, to: _Stand) -> None:
        """One sweep from wherever the weights stand to theta + scale * eps * z."""
        with fast.together():
            for walk in self._walks or ():
                if not self._move_all(walk, to):
                    for info in walk.infos:
                        self._move_one(info, to)
            for info in self.engine.infos if self._walks is None else ():
                self._move_one(info, to)
        self._stand, self._update, self._open = to, None, True

    def _move_all(self, walk: Walk, to: _Stand) -> bool:
        """`_move_one` of those that have the same terms; whether it was done."""
        first = walk.infos[0]
        if self._open or self.engine.mask.static:
            return walk.sweep(self._terms(first, to))
        back = self._terms_back(first)
        return walk.sweep([*back, Term(to.scale * to.eps[first.group], to.seed)], len(back))

    def _move_one(self, info: ParamInfo, to: _Stand) -> None:
        if self._open or self.engine.mask.static:
            # The mask is the same before and after: way back, update and probe in one sweep.
            self.engine.sweep_held(info, self._terms(info, to))
        else:
            step = Term(to.scale * to.eps[info.group], to.seed)
            self.engine.resweep(info, self._terms_back(info), [step])

    def _terms(self, info: ParamInfo, to: _Stand) -> list[Term | Step]:
        """From where a parameter stands to `to`, under one mask."""
        at, eps = self._stand, to.eps[info.group]
        if self._open and at is not None and at.seed == to.seed:
            return [Term(to.scale * eps - at.scale * at.eps[info.group], to.seed)]
        return [*self._terms_back(info), Term(to.scale * eps, to.seed)]

    def _settle_all(self) -> None:
        with fast.together():
            for walk in self._walks or ():
                back = self._terms_back(walk.infos[0])
                if not walk.sweep(back):
                    for info in walk.infos:
                        self.engine.sweep_held(info, back)
            for info in self.engine.infos if self._walks is None else ():
                self.engine.sweep_held(info, self._terms_back(info))
        self._stand = self._update = None

    def _terms_back(self, info: ParamInfo) -> list[Term | Step]:
        """The way back and the update that waits; one that is no list of terms is applied here."""
        engine, rule, update = self.engine, self.rule, self._update
        terms: list[Term | Step] = []
        if self._stand is not None:
            at = self._stand
            terms.append(Term(-at.scale * at.eps[info.group], at.seed))
        if update is not None and rule.alone:
            mask = engine.mask_of(info)
            engine.sweep(info, terms, mask)
            fast.settle()
            rule.apply_(engine, info, engine.scaled(update, info), mask, stochastic=False)
            terms = []
        elif update is not None:
            moves = rule.moves(engine, info, engine.scaled(update, info), stochastic=False)
            terms = _merge(terms + moves)
        return terms


@dataclass(frozen=True)
class _Stand:
    """Where the weights stand: theta + scale * eps[group] * z(seed)."""

    seed: int
    scale: float
    eps: tuple[float, ...]


def _merge(terms: list[Term | Step]) -> list[Term | Step]:
    """Fold a way back and an update along the same z into one term, so that it is rounded once."""
    if len(terms) < 2 or has_state(terms):
        return terms
    back, move = terms[0], terms[1]
    if back.seed == move.seed and move.scale == 1.0:
        return [Term(back.a + move.a, back.seed), *terms[2:]]
    return terms
