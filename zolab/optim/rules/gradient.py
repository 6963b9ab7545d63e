"""The gradient estimate of a step, as what moments look at, and as written out chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.optim.backend import CHUNK, Term
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import wide_dtype
from zolab.optim.parameters import ParamInfo


def probes(update: Update, group: int) -> tuple[tuple[float, int], ...]:
    """g = sum over the probes of c_j z_j / n, as (c_j / n, seed) pairs for one parameter group."""
    return tuple(zip(update.coefficients(group), update.seeds, strict=True))


def descent(update: Update, group: int, stochastic: bool) -> Term:
    """w <- (1 - ηλ) w - η move for one parameter group, rounded by the words of the first probe."""
    lr = update.lr[group]
    return Term(-lr, update.seeds[0], 1.0 - lr * update.weight_decay[group], stochastic)


def kept(store: dict[str, Tensor], info: ParamInfo) -> Tensor:
    """A moment of a parameter: flat, zeros when it is first asked for."""
    if info.name not in store:
        flat = info.data.view(-1)
        store[info.name] = torch.zeros_like(flat, dtype=wide_dtype(flat))
    return store[info.name]


@dataclass(frozen=True)
class Chunk:
    """A run of elements of one parameter.

    Attributes:
        start: index of its first element.
        weight: (n,), a view of the weights.
        mask: bool (n,), or None when all move.
    """

    start: int
    weight: Tensor
    mask: Tensor | None


def chunks(info: ParamInfo, mask: Tensor | bool) -> Iterator[Chunk]:
    """The elements of a parameter in runs that fit the cache; none when nothing moves."""
    if mask is False:
        return
    weight = info.data.view(-1)
    chosen = mask.view(-1) if isinstance(mask, Tensor) else None
    for start in range(0, len(weight), CHUNK):
        part = slice(start, start + CHUNK)
        yield Chunk(start, weight[part], None if chosen is None else chosen[part])


def gradient(engine: Engine, info: ParamInfo, update: Update, chunk: Chunk) -> Tensor:
    """g on one chunk, 0 where masked: (n,), float64 for float64 weights, else float32."""
    count, device = len(chunk.weight), chunk.weight.device
    total: Tensor | None = None
    for c, seed in probes(update, info.group):
        z = engine.source.z(info.pid, seed, chunk.start, count, device)
        term = z.to(wide_dtype(chunk.weight)) * c
        total = term if total is None else total.add_(term)
    assert total is not None
    return total if chunk.mask is None else total.masked_fill_(~chunk.mask, 0.0)
