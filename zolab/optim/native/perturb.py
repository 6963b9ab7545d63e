"""One weight perturbed by ever new directions: told to C once, since Python between two products
runs from cold caches."""

from __future__ import annotations

from ctypes import Array, pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native.jobs import TILE, settle
from zolab.optim.native.pack import DTYPES, MASK64, address
from zolab.optim.native.probe import Few, Lot, Pair, Put

if TYPE_CHECKING:
    from zolab.optim.backend import Limit
    from zolab.optim.bits import Places


class Both:
    """W + eps z and W - eps z beside W.

    Args:
        kind, pid, mask, offset: as for `native.pair`.
        weight: as for `native.pair`; not held: whoever uses this knows that it is where it was.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """

    def __init__(
        self,
        kind: str,
        weight: Tensor,
        pid: int,
        mask: Tensor | Places | Limit | None,
        offset: int = 0,
    ) -> None:
        self.on = on = native._library()
        self._size, self._shape, self._dtype = weight.numel(), weight.shape, weight.dtype
        code, at = (native._KINDS[kind], DTYPES[weight.dtype]), address("weight", weight)
        chosen, self._mask = pointer(native._pair_mask(mask, weight, offset)), mask
        self._pair = Pair(*code, pid, at, chosen, offset, table=on.levels)
        self._lots = (Lot * 1)(on.lot("zo_pair", self._pair, self._size))

    def make(self, seed: int, eps: float) -> tuple[Tensor, Tensor]:
        """Both, in new memory, of the shape and dtype of the weight.

        Args:
            seed: 64-bit seed of the direction.
            eps: perturbation scale.
        """
        made = (torch.empty(self._shape, dtype=self._dtype, device="cpu") for _ in range(2))
        plus, minus = made
        told = self._pair
        told.plus, told.minus = plus.data_ptr(), minus.data_ptr()
        told.seed, told.eps = seed & MASK64, eps
        settle()
        self.on.run_packed(self._lots, 1, self._size)
        return plus, minus


class Patch:
    """W + eps z or W - eps z where W is, if few of its elements move.

    From `begin` on, whatever happens, `rest` gives the weight every bit that it had. What does not
    move is not touched: where `native.pair` adds a zero, a -0 stays one.

    Args:
        kind, pid, offset: as for `native.sweep`.
        weight: as for `native.sweep`; not held: whoever uses this knows that it is where it was.
        mask: places of the whole parameter; nothing else is touched.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """

    def __init__(self, kind: str, weight: Tensor, pid: int, mask: Places, offset: int = 0) -> None:
        self.on = on = native._library()
        size, code = weight.numel(), DTYPES[weight.dtype]
        at, places = address("weight", weight), pointer(native._mask(mask, weight, None, 0, offset))
        self._size, self._dtype, self._mask = size, weight.dtype, mask
        last = -(-(offset + size) // TILE)
        self._count = int(mask.starts[last]) - int(mask.starts[offset // TILE])
        self._few = Few(native._KINDS[kind], code, pid, at, places, offset, table=on.levels)
        self._put = Put(code, at, places, offset, None)
        self._lots = [
            (Lot * 1)(on.lot(name, asked, size))
            for name, asked in (("zo_few", self._few), ("zo_put", self._put))
        ]
        self._values: Tensor | None = None
        self._turned = False

    def begin(self, seed: int, eps: float) -> None:
        """The weight is W + eps z.

        Args:
            seed: 64-bit seed of the direction.
            eps: perturbation scale; less than 0 for the other sign.
        """
        self.rest()
        values = torch.empty(3, self._count, dtype=self._dtype, device="cpu")
        self._values, self._turned = values, False
        first, step = values.data_ptr(), self._count * values.element_size()
        few = self._few
        few.was, few.now, few.then = first, first + step, first + 2 * step
        few.seed, few.eps = seed & MASK64, eps
        settle()
        self._run(self._lots[0], self._size)

    def turn(self) -> None:
        """From W + eps z to W - eps z, or back.

        Raises:
            RuntimeError: nothing has begun.
        """
        if not self._few.begun:
            raise RuntimeError("turn: nothing has begun")
        self._turned = not self._turned
        self._exchange(self._few.then if self._turned else self._few.now)

    def rest(self) -> None:
        """It is W again, if it was something else."""
        if self._few.begun:
            self._exchange(self._few.was)
            self._few.begun, self._values = 0, None

    def _exchange(self, values: int) -> None:
        self._put.values = values
        # By the places: waking a thread up takes longer than a few of them.
        self._run(self._lots[1], self._count)

    def _run(self, lots: Array[Lot], elements: int) -> None:
        # Threads of a pool could be left at work by an interrupt, of which `rest` knew nothing.
        self.on.run_packed(lots, 1, elements if self.on.has_team else 0)
