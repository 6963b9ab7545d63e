"""Plain descent along the probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zolab.optim.backend import Limit, Term
from zolab.optim.bits import Places
from zolab.optim.directions import Direction
from zolab.optim.engine import Engine, Update
from zolab.optim.masks import Dense
from zolab.optim.moments import Step
from zolab.optim.parameters import ParamInfo


class Rule:
    """Base of the rules.

    Attributes:
        stateful: True when what a sweep is to do differs from parameter to parameter: `moves` says
            it, and `terms` is not used.
        alone: True when an update is nothing that a sweep can do and `apply_` does it by itself;
            so it is with every class that has its own.
        reach: how many steps' noise an update needs.
        per_weight: float32 numbers kept per weight (float64 for such weights).
        buffers: chunks of such numbers that an update holds at once, beside z and the step.
        late: True when slopes may be numbers that the host has not read (`late.Late`), and slopes
            of 0 with `Update.kept` change nothing, as a skipped step must.
    """

    stateful = False
    alone = False
    reach = 1
    per_weight = 0
    buffers = 0
    late = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.alone = cls.alone or "apply_" in vars(cls)

    def terms(self, update: Update, group: int, stochastic: bool) -> list[Term]:
        """The update as terms of a sweep, for one parameter group."""
        raise NotImplementedError

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        """The update of one parameter as part of a sweep; called once, and then it is made."""
        return list(self.terms(update, info.group, stochastic))

    def apply_(
        self,
        engine: Engine,
        info: ParamInfo,
        update: Update,
        mask: Tensor | Places | Limit | bool,
        stochastic: bool,
    ) -> None:
        """Update one parameter in place; its weights are clean. A tensor or bool if `alone`."""
        engine.sweep(info, self.moves(engine, info, update, stochastic), mask)

    def check(self, direction: Direction) -> None:
        """Refuse a direction that the rule cannot work with; ValueError with the reason."""

    def check_mask(self, mask: Dense) -> None:
        """Refuse a mask that the rule cannot work with; ValueError with the reason."""

    def note(self, update: Update) -> None:
        """Called once a step, before its update is applied to any parameter."""

    def shift(self, name: str, device: torch.device) -> None:
        """Move what is kept for every weight of a parameter to another device."""

    def state_bytes(self, direction: Direction, info: ParamInfo) -> int:
        """Bytes kept for one parameter, once it has been updated."""
        return self.per_weight * max(4, info.param.element_size()) * info.numel

    def state(self) -> dict[str, Tensor]:
        """Tensors to save, by name; empty for stateless rules."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class Sgd(Rule):
    """θ ← (1 - ηλ) θ - η/n Σ_j c_j z_j (MeZO Algorithm 1; decoupled decay λ comes first).

    Keeps no state. The number each sweep gets is -η c_j / n.
    """

    late = True

    def terms(self, update: Update, group: int, stochastic: bool) -> list[Term]:
        lr = update.lr[group]
        decay = update.kept(1.0 - lr * update.weight_decay[group])
        coefficients = update.coefficients(group)
        out = []
        for i, (c, seed) in enumerate(zip(coefficients, update.seeds, strict=True)):
            out.append(Term(-lr * c, seed, decay if i == 0 else 1.0, stochastic))
        return [term for term in out if term.a != 0.0 or term.scale != 1.0]
