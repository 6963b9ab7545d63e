"""The same terms over many parameters: sweeps of a small model would else be mostly Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native.pack import DTYPES, address, packed
from zolab.optim.native.probe import Mask, Sweep

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
