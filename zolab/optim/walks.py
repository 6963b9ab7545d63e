"""Sweeps over many parameters that are given the same terms, told to the kernels once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zolab.optim import fast, native
from zolab.optim.backend import Limit, Term
from zolab.optim.bits import Places
from zolab.optim.directions import Kept
from zolab.optim.engine import Engine
from zolab.optim.native.walk import Sweeps
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules import Rule

#: Sweeps that are kept told: a step in place has two, with the first and the last of a run four.
KEPT = 8


class Walk:
    """Parameters of one optimizer group and dtype, all of which every sweep gives the same terms.

    What the native kernels are told of each parameter stays as it is from step to step. Before a
    sweep it is compared with what is the case (where weights and masks lie, limits of masks), and
    told anew if anything is another.

    Args:
        engine: noise and masks.
        infos: the parameters, at least one.
    """

    def __init__(self, engine: Engine, infos: Sequence[ParamInfo]) -> None:
        self.engine, self.infos = engine, list(infos)
        self._told: dict[tuple[int, int | None], tuple[list[Any], Sweeps]] = {}

    def sweep(self, terms: Sequence[Term], before: int | None = None) -> bool:
        """Apply terms to all of them in place, under their masks.

        Args:
            terms: as for `backend.sweep_`.
            before: a step begins: masks that move are decided after so many terms; None: they are
                those in force.

        Returns:
            Whether it was done; else nothing was, and the caller goes from one to the next.
        """
        engine = self.engine
        kind = engine.source.kind_of(self.infos[0].pid)
        if fast.name(kind, self.infos[0].data) != native.NAME:
            return False
        begin = time.perf_counter()
        masks = self._masks(before)
        if masks is None:
            return False
        if terms:
            sweeps = self._sweeps(kind, masks, len(terms), before)
            if sweeps is None:
                return False
            kept = None
            if isinstance(engine.source, Kept):
                seeds, on = {term.seed for term in terms if term.a != 0.0}, self.infos[0].data
                kept = {seed: engine.source.whole(seed, on.device) for seed in seeds}
            sweeps.run(terms, kept)
        engine.clock.perturb += time.perf_counter() - begin
        return True

    def _masks(
        self, before: int | None
    ) -> list[tuple[Tensor | Places | bool, Limit | None]] | None:
        """What each is swept under; None where one sweep cannot do it."""
        out = []
        for info in self.infos:
            mask = self.engine.told(info, before is not None, bool(before))
            if mask is None:
                return None
            out.append(mask)
        return out

    def _sweeps(
        self,
        kind: str | None,
        masks: Sequence[tuple[Tensor | Places | bool, Limit | None]],
        count: int,
        before: int | None,
    ) -> Sweeps | None:
        """The sweep as it was told; told anew if it has changed. None if kernels cannot do it."""
        facts: list[Any] = [native.loaded()]
        for info, (mask, limit) in zip(self.infos, masks, strict=True):
            param = info.param
            facts.append((param.data_ptr(), param.dtype, param.shape, param.is_contiguous(), limit))
            facts.append(mask if isinstance(mask, bool) else _place(mask))
        key = (count, before)
        found = self._told.get(key)
        if found is not None and found[0] == facts:
            return found[1]
        engine = self.engine
        if any(
            engine.source.kind_of(info.pid) != kind or fast.name(kind, info.data) != native.NAME
            for info in self.infos
        ):
            return None
        moving = [
            (info, (None if mask is True else mask, limit))
            for info, (mask, limit) in zip(self.infos, masks, strict=True)
            if mask is not False
        ]
        infos, under = [info for info, _ in moving], [mask for _, mask in moving]
        weights, pids = [info.data for info in infos], [info.pid for info in infos]
        if len(self._told) >= KEPT:
            self._told.clear()
        sweeps = Sweeps(kind, weights, pids, count, under, before or 0)
        self._told[key] = facts, sweeps
        return sweeps


def _place(mask: Tensor | Places) -> tuple[Any, ...]:
    """Where a held mask lies, and what it looks like there."""
    if isinstance(mask, Places):
        return mask.places.data_ptr(), mask.starts.data_ptr(), mask.places.numel(), mask.size
    return mask.data_ptr(), mask.dtype, mask.numel()


def walks(engine: Engine, rule: Rule) -> list[Walk] | None:
    """All trained parameters, a walk for each group and dtype; None where their terms differ."""
    if rule.stateful or rule.alone:
        return None
    if any(engine.direction.gain(info.pid) != 1.0 for info in engine.infos):
        return None
    groups: dict[tuple[int, torch.dtype], list[ParamInfo]] = {}
    for info in engine.infos:
        groups.setdefault((info.group, info.param.dtype), []).append(info)
    return [Walk(engine, infos) for infos in groups.values()]
