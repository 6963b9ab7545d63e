"""What directions with a way of their own do in one go: whole updates, and pairs of copies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.backend import Limit, Term
from zolab.optim.bits import Places
from zolab.optim.engine import Engine, Update, half_precision
from zolab.optim.masks import Dense
from zolab.optim.parameters import ParamInfo
from zolab.optim.sent import is_here

if TYPE_CHECKING:
    from zolab.optim.rules import Rule


def applied_at_once(engine: Engine, rule: Rule, update: Update) -> bool:
    """Apply an update to clean weights if the direction can do that for all of them together:
    whether it has. Nothing has been done if not.

    Args:
        engine, rule, update: as for `apply_now`.
    """
    direction = engine.direction
    if rule.alone or rule.stateful or type(engine.mask) is not Dense:
        return False
    if engine.source is not direction or not all(is_here(info.param) for info in engine.infos):
        return False
    groups: dict[tuple[int, float, bool], list[ParamInfo]] = {}
    for info in engine.infos:
        key = info.group, direction.gain(info.pid), half_precision(info.param)
        groups.setdefault(key, []).append(info)
    moves = []
    for (group, _, half), infos in groups.items():
        terms = rule.terms(engine.scaled(update, infos[0]), group, half)
        if terms:
            moves.append((terms, infos))
    return direction.sweep_all(moves)


def pair(
    engine: Engine,
    info: ParamInfo,
    weight: Tensor,
    seed: int,
    eps: float,
    mask: Tensor | Places | Limit | bool,
) -> tuple[Tensor, Tensor]:
    """Both perturbed copies of a parameter, by two sweeps where the direction has some of its own:
    the same bits.

    Args:
        engine, info, weight, seed, eps, mask: as for `Engine.pair_rows`, of all its rows.
    """
    source = engine.source
    own = weight.dtype is torch.float32 and source.sweeps(info)
    if not own or mask is not True:
        return engine.pair_rows(info, weight, seed, eps, mask, 0)
    begin = time.perf_counter()
    both = weight.clone(), weight.clone()
    for copy, by in zip(both, (eps, -eps), strict=True):
        source.sweep(copy, info.pid, [Term(by, seed)])
    engine.clock.perturb += time.perf_counter() - begin
    return both
