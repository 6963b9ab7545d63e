"""The gradient estimate written out, chunk by chunk, for the rules that need it so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.optim.backend import CHUNK
from zolab.optim.engine import Engine, Update
from zolab.optim.parameters import ParamInfo


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


def wide_dtype(info: ParamInfo) -> torch.dtype:
    """Dtype of moments: float64 for float64 weights, float32 for all others."""
    return torch.float64 if info.data.dtype == torch.float64 else torch.float32


def gradient(engine: Engine, info: ParamInfo, update: Update, chunk: Chunk) -> Tensor:
    """g = sum over the probes of c_j z_j / n on one chunk, 0 where masked: (n,), wide dtype."""
    count, device = len(chunk.weight), chunk.weight.device
    total: Tensor | None = None
    for c, seed in zip(update.coefficients(info.group), update.seeds, strict=True):
        z = engine.source.z(info.pid, seed, chunk.start, count, device)
        term = z.to(wide_dtype(info)) * c
        total = term if total is None else total.add_(term)
    return total if chunk.mask is None else total.masked_fill_(~chunk.mask, 0.0)
