"""The same terms over many parameters: sweeps of a small model would else be mostly Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native.pack import DTYPES, address, packed
from zolab.optim.native.probe import Mask

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
    read = [(c, kept[t.seed]) for c, t in zip(told, terms, strict=True) if kept and t.a != 0.0]
    code, mask, sweep = native._KINDS[kind], byref(Mask()), on.lib.zo_sweep
    for weight, pid in zip(weights, pids, strict=True):
        at, size, dtype = address("weight", weight), weight.numel(), weight.dtype
        number = DTYPES[dtype]
        for term, z in read:
            term.z = address("kept", z[pid], torch.float32, size)
        if size < native.PARALLEL_FROM:
            sweep(code, number, at, mask, 0, size, 0, pid, told, count, on.levels)
            continue

        def run(begin: int, end: int, at: int = at, number: int = number, pid: int = pid) -> None:
            sweep(code, number, at, mask, begin, end, 0, pid, told, count, on.levels)

        native._split(size, run)
