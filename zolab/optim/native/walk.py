"""The same over many parameters: what is done to small ones would else be mostly Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native.jobs import settle
from zolab.optim.native.pack import DTYPES, MASK64, address, write
from zolab.optim.native.probe import Fill, Lot, Mask, Pair, Sweep, Term

if TYPE_CHECKING:
    from zolab.optim import backend
    from zolab.optim.backend import Limit
    from zolab.optim.bits import Places


class Sweeps:
    """The same sweep over some parameters, told to C once and run with ever new terms.

    Args:
        kind: noise, as for `native.sweep`.
        weights: as for `native.sweep`, changed in place by `run`; not held: whoever runs it knows
            that they are where they were.
        pids: id of each.
        masks: what each is swept under, as mask and limit of `native.sweep`, as little held; None:
            no masks.
        count: terms of a run.
        split: as for `native.sweep`.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """

    def __init__(
        self,
        kind: str,
        weights: Sequence[Tensor],
        pids: Sequence[int],
        count: int,
        masks: Sequence[tuple[Tensor | Places | None, Limit | None]] | None = None,
        split: int = 0,
    ) -> None:
        self.on = on = native._library()
        self._pids, self._sizes = list(pids), [weight.numel() for weight in weights]
        self._terms = (Term * count)()
        code, table, free = native._KINDS[kind], on.levels, Mask()
        self._masks = [free] * len(weights)
        if masks is not None:
            them = zip(masks, weights, strict=True)
            self._masks = [native._mask(mask, w, limit, split) for (mask, limit), w in them]
        each = zip(weights, pids, self._masks, strict=True)
        self._asked = (Sweep * len(weights))()
        lots = []
        for asked, (weight, pid, mask) in zip(self._asked, each, strict=True):
            at, dtype = address("weight", weight), DTYPES[weight.dtype]
            told = (code, dtype, count, pid, at, pointer(mask), 0, self._terms, table)
            asked.__init__(*told)
            lots.append(on.lot("zo_sweep", asked, weight.numel()))
        self._lots = (Lot * len(lots))(*lots)

    def run(
        self,
        terms: Sequence[backend.Term],
        kept: Mapping[int, Mapping[int, Tensor]] | None = None,
    ) -> None:
        """Sweep each weight.

        Args:
            terms: the same for all, none with moments.
            kept: by seed and id, z of whole parameters if it is at hand: float32, contiguous.

        Raises:
            ValueError: a tensor is something else.
        """
        told = self._terms
        write(told, terms)
        read = [(i, kept[term.seed]) for i, term in enumerate(terms) if kept and term.a != 0.0]
        own = []
        for asked, pid, size in zip(self._asked, self._pids, self._sizes, strict=True):
            if not read:
                break
            own.append(type(told)(*told))
            for i, z in read:
                own[-1][i].z = address("kept", z[pid], torch.float32, size)
            asked.terms = own[-1]
        settle()
        self.on.run_packed(self._lots, len(self._lots), sum(self._sizes))
        for asked in self._asked if read else ():
            asked.terms = told


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
