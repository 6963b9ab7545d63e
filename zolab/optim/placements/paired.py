"""Both signs in one forward over the doubled batch; weights stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from zolab.optim.engine import Engine, Update
from zolab.optim.late import number
from zolab.optim.memory import Memory
from zolab.optim.placements.at_once import applied_at_once
from zolab.optim.placements.base import Closure, Placement, Probe, apply_now
from zolab.optim.placements.lower import LowerLayers
from zolab.optim.placements.modulewise import ModuleWise
from zolab.optim.rules import Rule
from zolab.optim.walks import walks


class CleanWeights(Placement):
    """Shared by the placements that leave the weights as they are while probing.

    They are only read. Where a mask that stays lets few of them move, the native kernels exchange
    those few while their module computes and put every bit back, instead of copying all the others.

    16-bit weights are updated with stochastic rounding, so that small updates are not lost.
    """

    needs_model = True
    rounds = True

    def bind(self, engine: Engine, rule: Rule, model: nn.Module | None, seed: int) -> None:
        super().bind(engine, rule, model, seed)
        if model is None:
            raise ValueError(
                f"placement {self.name} needs model=: the modules that own the weights"
            )
        self.modules = ModuleWise(model, engine)
        self._walks = walks(engine, rule)

    def update(self, update: Update | None) -> None:
        if update is not None and not applied_at_once(self.engine, self.rule, update):
            apply_now(self.engine, self.rule, update, self._walks)

    def memory(self, both: bool) -> Memory:
        alive, alone = self.modules.scratch_bytes()
        return Memory(state=0, copies=1, probing=alive, between=alone)

    def _one(self, seed: int, scale: float, eps: Sequence[float], closure: Closure) -> float:
        """Loss at theta + scale * eps * z; scale 0 is the model as it is."""
        if scale == 0.0:
            return number(closure(1)[0])
        return self.modules.losses(seed, [scale * e for e in eps], 1.0, lambda: closure(1)[:1])[0]


class Paired(CleanWeights):
    """One forward over `[x; x]`: the first half of the rows sees W + eps z, the second W - eps z.

    Each module that owns parameters makes both copies in scratch from one read and throws them
    away; embeddings perturb only the rows that are looked up, big linear layers go row block by
    row block. Masks and preconditioners see the clean weights. Source: ours (zolab design 2.3);
    ZO2 (arXiv 2503.12668) passes both hidden streams through each block in the same spirit.

    The closure must accept 2 (see `Closure`).
    """

    name = "paired"

    def bind(self, engine: Engine, rule: Rule, model: nn.Module | None, seed: int) -> None:
        super().bind(engine, rule, model, seed)
        self.lower = LowerLayers(self.modules)

    def memory(self, both: bool) -> Memory:
        return replace(super().memory(both), copies=2 if both else 1)

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        self.modules.extra_rows = getattr(closure, "leading_rows", tuple)
        out: list[float] = []
        for probe in probes:
            if probe.scales != (1.0, -1.0):
                out.extend(self._one(probe.seed, s, eps, closure) for s in probe.scales)
                continue
            out += self.modules.losses(probe.seed, eps, None, lambda: self.lower.losses(closure))
        return out
