"""How the work of a step is shared out: examples, probes or signs, with the same update for all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from zolab.checkpoint import weights_hash
from zolab.errors import UserError
from zolab.objectives import BatchLoss
from zolab.optim.placements.base import Closure, Placement, Probe
from zolab.parallel.ranks import Ranks

Item = TypeVar("Item")


def share_of(items: Sequence[Item], ranks: Ranks) -> list[Item]:
    """This rank's part of some items: adjoining ones, sizes that differ by one at most."""
    size, rest = divmod(len(items), ranks.size)
    start = ranks.rank * size + min(ranks.rank, rest)
    return list(items[start : start + size + (ranks.rank < rest)])


@dataclass
class SharedLoss(BatchLoss):
    """The loss of a mini-batch of which each rank holds a part.

    Each rank sends (sum of its terms for each copy, their weight): 16 bytes for one copy. The sums
    are added in rank order in float64, so every rank goes on with the same bits.
    """

    ranks: Ranks | None = None

    def __call__(self, copies: int = 1) -> list[float]:
        """Mean loss of the whole batch for each copy."""
        *totals, weight = self.ranks.sums([*self.sums(copies).tolist(), float(self.weight)])
        return [total / weight for total in totals]

    def tensors(self, copies: int = 1) -> list[Tensor]:
        raise UserError("train.share = data: forward-mode derivatives cannot be shared out")

    def backward(self) -> float:
        raise UserError("train.share = data: only forward passes can be shared out")


class SharedPlacement:
    """Each rank evaluates some of a step's points on the whole batch; all get all the losses.

    By probe: adjoining probes go to one rank (n-SPSA with different directions per rank). By sign:
    points are dealt out one by one, so that two ranks take a plus and a minus each. What travels
    are losses, 8 bytes a point: directions and coefficients follow from them and the run's seed.

    Args:
        inner: the placement that evaluates and updates. It must not leave anything in the weights
            (`in_place` does), or the ranks' weights would part.
        ranks: the processes.
        by: "probe" or "sign".
    """

    def __init__(self, inner: Placement, ranks: Ranks, by: str) -> None:
        if inner.name == "in_place":
            raise UserError(
                f"train.share = {by}: optimizer/placement=in_place leaves rounding of each walk in "
                "the weights, so that those of the ranks would part; use paired or per_layer"
            )
        self.inner, self.ranks, self.by = inner, ranks, by

    def __getattr__(self, name: str) -> Any:
        """All but the losses is as `inner` does it."""
        return getattr(self.inner, name)

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        points = [(probe.seed, scale) for probe in probes for scale in probe.scales]
        owners = self._owners(probes)
        me = self.ranks.rank
        mine = [point for point, owner in zip(points, owners, strict=True) if owner == me]
        found = self.inner.losses(_as_probes(mine), eps, closure) if mine else []
        room = max(owners.count(rank) for rank in range(self.ranks.size))
        told = self.ranks.exchange([*found, *[0.0] * (room - len(found))])
        queues = [iter(row) for row in told]
        return [next(queues[owner]) for owner in owners]

    def _owners(self, probes: Sequence[Probe]) -> list[int]:
        """The rank that evaluates each point."""
        if self.by == "sign":
            return [i % self.ranks.size for i in range(sum(len(p.scales) for p in probes))]
        size = self.ranks.size
        return [j * size // len(probes) for j, p in enumerate(probes) for _ in p.scales]


def _as_probes(points: Sequence[tuple[int, float]]) -> list[Probe]:
    """Points as probes again, those of one direction together."""
    scales: dict[int, list[float]] = {}
    for seed, scale in points:
        scales.setdefault(seed, []).append(scale)
    return [Probe(seed, tuple(values)) for seed, values in scales.items()]


def agree(digest: str, ranks: Ranks, step: int) -> None:
    """Return if all ranks hold the same weights, by their hash; 8 bytes each.

    Raises:
        RuntimeError: they do not. Nothing that was recorded since the last time can be trusted.
    """
    number = float(int.from_bytes(hashlib.sha256(digest.encode()).digest()[:6], "big"))
    found = [row[0] for row in ranks.exchange([number])]
    odd = [rank for rank, value in enumerate(found) if value != found[0]]
    if odd:
        raise RuntimeError(
            f"after step {step} the weights of rank {', '.join(map(str, odd))} are not those of "
            "rank 0: the processes must run the same code on the same kind of device"
        )


def settle_share(learner: Any, model: nn.Module, settings: dict[str, Any], ranks: Ranks) -> None:
    """Let the processes of a cell share its work, once all of them stand at the same step.

    Args:
        learner: `zolab.learner.ZerothOrderLearner` of this process.
        model: its model.
        settings: the `train` section of the config.
        ranks: the processes.

    Raises:
        UserError: the work cannot be shared out so.
        RuntimeError: the processes do not hold the same weights.
    """
    by, size = settings["share"], settings["batch_size"]
    if by == "data" and size < ranks.size:
        raise UserError(
            f"train.batch_size = {size}: less than one example for each of {ranks.size} processes"
        )
    if by != "data":
        learner.optimizer.placement = SharedPlacement(learner.optimizer.placement, ranks, by)
    learner.flush()
    agree(weights_hash(model), ranks, learner.num_steps)
