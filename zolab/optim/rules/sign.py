"""Steps of a size that does not depend on the loss."""

from __future__ import annotations

import math
from dataclasses import replace

from zolab.optim.backend import Term
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import Look, Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import descent, probes
from zolab.optim.rules.sgd import Rule, Sgd

OF = ("scalar", "element")


class Sign(Rule):
    """ZO-SGD-Sign of ZO-Bench (arXiv 2402.11592). No state.

    of="scalar": θ ← (1-ηλ) θ - η/n Σ_j sign(c_j) z_j, what that program does; of="element":
    θ ← (1-ηλ) θ - η sign(Σ_j c_j z_j), signSGD on the estimate.

    Args:
        of: what the sign is taken of.
    """

    def __init__(self, of: str = "scalar") -> None:
        if of not in OF:
            raise ValueError(f"rule.of = {of!r}: expected one of {', '.join(OF)}")
        self.of = of
        self.stateful = of == "element"  # the update is then no sum of noises
        self.buffers = int(self.stateful)
        self._sgd = Sgd()

    def terms(self, update: Update, group: int, stochastic: bool) -> list[Term]:
        return self._sgd.terms(scalar_sign(update), group, stochastic)

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        if self.of == "scalar":
            return super().moves(engine, info, update, stochastic)
        look = Look(probes(update, info.group), first=(0.0, 1.0))
        return [Step((look,), descent(update, info.group, stochastic), sign=True)]


def scalar_sign(update: Update) -> Update:
    """The same update with every coefficient c_j replaced by its sign (0 stays 0)."""
    signs = tuple(math.copysign(1.0, slope) if slope else 0.0 for slope in update.slopes)
    return replace(update, slopes=signs, eps=(1.0,) * len(update.eps))
