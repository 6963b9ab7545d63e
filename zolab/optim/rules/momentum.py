"""Heavy-ball momentum on the gradient estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.backend import CHUNK, Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.sgd import Rule


class Momentum(Rule):
    """MeZO-momentum (arXiv 2305.17333, section 2.2): m ← β m + g, θ ← (1 - ηλ) θ - η m.

    g = Σ_j c_j z_j / n. State: m in float32, one number per weight (this is the stateful form;
    torch's SGD with dampening 0 does the same to an explicit gradient).

    Args:
        beta: β, 0 <= beta < 1.
    """

    stateful = True

    def __init__(self, beta: float = 0.9) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"rule.beta = {beta}: expected 0 <= beta < 1")
        self.beta = beta
        self._m: dict[str, Tensor] = {}

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        if mask is False:
            return
        weight = info.data.view(-1)
        m = self._m.get(info.name)
        if m is None:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            m = self._m[info.name] = torch.zeros_like(weight, dtype=wide)
        lr = update.lr[info.group]
        move = Term(-lr, update.seeds[0], 1.0 - lr * update.weight_decay[info.group], stochastic)
        chosen = mask.view(-1) if isinstance(mask, Tensor) else None
        for start in range(0, len(weight), CHUNK):
            part, m_part = weight[start : start + CHUNK], m[start : start + CHUNK]
            keep = None if chosen is None else chosen[start : start + CHUNK]
            m_part.mul_(self.beta)
            for c, seed in zip(update.coefficients(info.group), update.seeds, strict=True):
                z = engine.source.z(info.pid, seed, start, len(part), part.device)
                step = z.to(m_part.dtype) * c
                m_part.add_(step if keep is None else step.masked_fill_(~keep, 0.0))
            apply_term_(part, m_part, move, info.pid, start, keep)

    def state(self) -> dict[str, Tensor]:
        return dict(self._m)

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._m = dict(state)
