"""Steps of a size that does not depend on the loss."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from zolab.optim.backend import Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import chunks, gradient
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
        self._sgd = Sgd()

    def terms(self, update: Update, group: int, stochastic: bool) -> list[Term]:
        return self._sgd.terms(scalar_sign(update), group, stochastic)

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        if self.of == "scalar":
            super().apply_(engine, info, update, mask, stochastic)
            return
        lr = update.lr[info.group]
        move = Term(-lr, update.seeds[0], 1.0 - lr * update.weight_decay[info.group], stochastic)
        for chunk in chunks(info, mask):
            g = gradient(engine, info, update, chunk).sign_()
            apply_term_(chunk.weight, g, move, info.pid, chunk.start, chunk.mask)


def scalar_sign(update: Update) -> Update:
    """The same update with every coefficient c_j replaced by its sign (0 stays 0)."""
    signs = tuple(math.copysign(1.0, slope) if slope else 0.0 for slope in update.slopes)
    return replace(update, slopes=signs, eps=(1.0,) * len(update.eps))
