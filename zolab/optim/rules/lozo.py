"""Momentum on the fresh factor of a lazy low-rank direction."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.backend import Term
from zolab.optim.directions import Direction
from zolab.optim.engine import Engine, Update
from zolab.optim.low_rank import LazyLowRank
from zolab.optim.parameters import ParamInfo
from zolab.optim.products import bound_of, snap_, sweep_
from zolab.optim.rules.sgd import Rule, Sgd


class FactorMomentum(Rule):
    """LOZO-M (arXiv 2410.07698): N ← β N + (1 - β) c U, W ← (1 - ηλ) W - η N Vᵀ.

    When V changes, N ← N V_oldᵀ V_new / n moves the momentum to the new subspace. The estimate's
    1/r (`LazyLowRank.scale_by_rank`) is in c. 1-D tensors take a plain step. State: N, m r numbers
    a matrix.

    Args:
        beta: β, 0 <= beta < 1; the authors' script uses 0.9.
    """

    stateful = True

    def __init__(self, beta: float = 0.9) -> None:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"rule.beta = {beta}: expected 0 <= beta < 1")
        self.beta = beta
        self._n: dict[str, Tensor] = {}
        self._period: dict[str, int] = {}

    def state_bytes(self, direction: Direction, info: ParamInfo) -> int:
        assert isinstance(direction, LazyLowRank)
        if info.pid not in direction.shapes:
            return 0
        return 4 * direction.shapes[info.pid][0] * direction.rank_of(info.pid)

    def check(self, direction: Direction) -> None:
        if not isinstance(direction, LazyLowRank):
            raise ValueError(
                f"rule FactorMomentum with direction {type(direction).__name__}: its momentum is "
                "kept on the left factor of U Vᵀ, so it needs direction LazyLowRank"
            )

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        direction = engine.direction
        assert isinstance(direction, LazyLowRank)  # see `check`
        if mask is False:
            return
        if info.pid not in direction.shapes:
            engine.sweep(info, Sgd().terms(update, info.group, stochastic), mask)
            return
        left, right = self._advance(direction, info, update)
        lr = update.lr[info.group]
        move = Term(-lr, update.seeds[0], 1.0 - lr * update.weight_decay[info.group], stochastic)
        left = snap_(left.clone(), left.shape[1], bound_of(left))
        sweep_(info.data, info.pid, [move], {move.seed: (left, right.T)})

    def _advance(
        self, direction: LazyLowRank, info: ParamInfo, update: Update
    ) -> tuple[Tensor, Tensor]:
        """N after this step, and V of this step."""
        name, pid, device = info.name, info.pid, info.data.device
        period = direction.period_at(update.step)
        right = direction.right(pid, period, device)
        held = self._n.get(name)
        if held is None:
            m, r = direction.shapes[pid][0], direction.rank_of(pid)
            held = self._n[name] = torch.zeros(m, r, dtype=torch.float32, device=device)
        elif self._period[name] != period:
            old = direction.right(pid, self._period[name], device)
            held.copy_(held @ (old.T @ right) / len(right))
        self._period[name] = period
        held.mul_(self.beta)
        for c, seed in zip(update.coefficients(info.group), update.seeds, strict=True):
            left, _ = direction.factors(pid, seed, device)
            held.add_(left, alpha=(1.0 - self.beta) * c)
        return held, right

    def state(self) -> dict[str, Tensor]:
        periods = {f"{k}/period": torch.tensor(v) for k, v in self._period.items()}
        return {f"{k}/n": v for k, v in self._n.items()} | periods

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._n = {k.removesuffix("/n"): v for k, v in state.items() if k.endswith("/n")}
        self._period = {
            k.removesuffix("/period"): int(v) for k, v in state.items() if k.endswith("/period")
        }
