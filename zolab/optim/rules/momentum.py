"""Heavy-ball momentum on the gradient estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.backend import Term
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import Look, Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import descent, kept, probes
from zolab.optim.rules.history import Replayable


class Momentum(Replayable):
    """MeZO-momentum (arXiv 2305.17333, section 2.2): m ← β m + g, θ ← (1 - ηλ) θ - η m.

    g = Σ_j c_j z_j / n; torch's SGD with dampening 0 does the same to an explicit gradient.
    State: "stored" keeps m in float32, one number per weight; "replayed" keeps only the seeds and
    coefficients of the last `window` steps and makes m = Σ_k β^k g_{t-k} anew, as terms of the
    update's sweep: no state, `window` times the noise.

    Args:
        beta: β, 0 <= beta < 1.
        history: "stored" or "replayed".
        window: steps a replayed m reaches back; None for the fewest with β^window < 1e-3.
    """

    def __init__(
        self, beta: float = 0.9, history: str = "stored", window: int | None = None
    ) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"rule.beta = {beta}: expected 0 <= beta < 1")
        self.beta = beta
        super().__init__(history, window, beta)
        self.stateful = self._past is None
        self.per_weight = int(self.stateful)
        self._m: dict[str, Tensor] = {}

    def terms(self, update: Update, group: int, stochastic: bool) -> list[Term]:
        lr, share = update.lr[group], 1.0
        scale = 1.0 - lr * update.weight_decay[group]
        out = []
        for past in self._past:
            for c, seed in zip(past.coefficients(group), past.seeds, strict=True):
                out.append(Term(-lr * share * c, seed, scale, stochastic))
                scale = 1.0
            share *= self.beta
        return [term for term in out if term.a != 0.0 or term.scale != 1.0]

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        if self._past is not None:
            return super().moves(engine, info, update, stochastic)
        if engine.stands_still(info):
            return []
        look = Look(probes(update, info.group), first=(self.beta, 1.0))
        return [Step((look,), descent(update, info.group, stochastic), first=kept(self._m, info))]

    def shift(self, name: str, device: torch.device) -> None:
        if name in self._m:
            self._m[name] = self._m[name].to(device)

    def state(self) -> dict[str, Tensor]:
        return dict(self._m) if self._past is None else self._past.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self._past is None:
            self._m = dict(state)
        else:
            self._past.load_state(state)
