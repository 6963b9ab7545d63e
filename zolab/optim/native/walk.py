"""The same over many parameters: what is done to small ones would else be mostly Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native.pack import DTYPES, MASK64, address, packed
from zolab.optim.native.probe import Fill, Mask, Pair, Sweep

if TYPE_CHECKING:
    from zolab.optim.backend import Term


def walk(
    kind: str,
    weights: Sequence[Tensor],
    pids: Sequence[int],
    terms: Sequence[Term],
    kept: Mapping[int, Mapping[int, Tensor]] | None = None,
) -> None:
    """`native.sweep` without a mask, over each weight in turn.

    Args:
        kind: noise, as for `native.sweep`.
        weights: as for `native.sweep`, changed in place.
        pids: id of each.
        terms: the same for all.
        kept: by seed and id, z of whole parameters if it is at hand: float32, contiguous.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    told, count = packed(terms), len(terms)
    read = [(i, kept[term.seed]) for i, term in enumerate(terms) if kept and term.a != 0.0]
    code, mask, table = native._KINDS[kind], pointer(Mask()), on.levels
    lots, keep = [], []
    for weight, pid in zip(weights, pids, strict=True):
        at, size, dtype = address("weight", weight), weight.numel(), DTYPES[weight.dtype]
        mine = told
        if read:
            mine = type(told)(*told)
            for i, z in read:
                mine[i].z = address("kept", z[pid], torch.float32, size)
        asked = Sweep(code, dtype, count, pid, at, mask, 0, mine, table)
        lots.append(on.lot("zo_sweep", asked, size))
        keep.append(asked)
    on.run(lots)


def fills(kind: str, pids: Sequence[int], sizes: Sequence[int], seed: int) -> Tensor:
    """`native.fill` of whole parameters, one behind the other: float32 (sum of sizes,).

    Args:
        kind, seed: as for `native.fill`.
        pids: id of each.
        sizes: elements of each.
    """
    on = native._library()
    out = torch.empty(sum(sizes))
    code, key, at = native._KINDS[kind], seed & MASK64, out.data_ptr()
    asked = []
    for pid, size in zip(pids, sizes, strict=True):
        asked.append(Fill(code, pid, 0, at, 0, key, on.levels))
        at += 4 * size
    on.run([on.lot("zo_fill", a, size) for a, size in zip(asked, sizes, strict=True)])
    return out


def pairs(
    kind: str, weights: Sequence[Tensor], pids: Sequence[int], seed: int, eps: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """`native.pair` of each weight, without a mask.

    Args:
        kind, seed: as for `native.pair`.
        weights: as for `native.pair`.
        pids, eps: id and perturbation scale of each.

    Returns:
        W + eps z and W - eps z of each, of its shape and dtype.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    code, key, mask = native._KINDS[kind], seed & MASK64, pointer(Mask())
    out, asked, lots = [], [], []
    for weight, pid, scale in zip(weights, pids, eps, strict=True):
        both = torch.empty_like(weight), torch.empty_like(weight)
        at, to = address("weight", weight), [part.data_ptr() for part in both]
        told = (code, DTYPES[weight.dtype], pid, at, mask, 0, key, None, scale, *to, on.levels)
        asked.append(Pair(*told))
        lots.append(on.lot("zo_pair", asked[-1], weight.numel()))
        out.append(both)
    on.run(lots)
    return out
