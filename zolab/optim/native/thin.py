"""What perturbations of low rank add to linear layers, by the native kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native import probe
from zolab.optim.native.pack import address

#: Rows that kernels may read behind the last one of what they are given, and elements of a mark.
_SPARE, _MARK = 3, 16


def takes_thin(rank: int) -> bool:
    """Whether there is `Thin` for a rank here, and a CPU it is made for."""
    return native.available() and 0 < rank <= native.loaded().thin_rank


#: x right of one layer, float32, and marks of x: a part of every row, by which it is known again.
Given = tuple[Tensor, Tensor]


class Inners:
    """What perturbations of low rank take of their input, x right, made by the pass that writes x.

    Args:
        layers: one or more with the same width of x, with the factors that they have now.

    Raises:
        ValueError: widths differ.

    Attributes:
        asked: as kernels take it.
        count: of the layers.
        n: width of x.
    """

    def __init__(self, layers: Sequence[Thin]) -> None:
        if len({thin.n for thin in layers}) != 1:
            raise ValueError(f"widths {[thin.n for thin in layers]}: expected one for all layers")
        self.count, self.n = len(layers), layers[0].n
        self.asked = (probe.Inner * self.count)()
        self._ranks = [thin.rank for thin in layers]
        self._kept = [thin.inner(one) for thin, one in zip(layers, self.asked, strict=True)]
        self.marks = torch.empty(0)

    def room(self, rows: int) -> list[Given]:
        """Where the next pass over so many rows is to put it: what each layer is `given` then."""
        self.marks = torch.empty(rows * _MARK)
        out = [torch.empty((rows + _SPARE) * rank) for rank in self._ranks]
        for one, to in zip(self.asked, out, strict=True):
            one.to = to.data_ptr()
        return [(to, self.marks) for to in out]


def tell(asked: probe.Thin | probe.Norm, following: Inners | None, width: int) -> None:
    """Fill in what a pass that writes rows of a width is to make of them."""
    if following is None:
        asked.count = 0
        return
    if following.n != width:
        raise ValueError(f"following: takes rows of {following.n}, not {width}")
    asked.next, asked.count = following.asked, following.count
    asked.marks = following.marks.data_ptr()


class Thin:
    """What a perturbation of low rank adds to the output of a linear layer, each row of the batch
    passed once, in any order of summing.

    Args:
        left: float32 (m, r), CPU, by columns.
        right: float32 (n, r), CPU, by columns.
        scales: one or two factors, on equal parts of the rows.
        shift: float32 (m,), contiguous: what every row gets, and a factor on it.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        scales: Sequence[float],
        shift: tuple[Tensor, float] | None = None,
    ) -> None:
        self.on = native._library()
        (self.m, self.rank), self.n = left.shape, len(right)
        self.parts = len(scales)
        self._other = ctypes.c_int32()
        self._asked = probe.Thin(n=self.n, m=self.m, rank=self.rank)
        self._asked.other = ctypes.addressof(self._other)
        self._lots = (probe.Lot * 1)()
        self._lots[0] = self.on.lot("zo_thin", self._asked, 0, unit=4, weight=self.n + self.m)
        self.aim(left, right, scales, shift)

    def aim(
        self,
        left: Tensor,
        right: Tensor,
        scales: Sequence[float],
        shift: tuple[Tensor, float] | None = None,
    ) -> None:
        """Take other factors of the same shapes; arguments and errors as for a new one."""
        asked, rank = self._asked, self.rank
        if len(scales) != self.parts:
            raise ValueError(f"scales: expected {self.parts} of them, not {len(scales)}")
        asked.right = address("right factor", right.T, torch.float32, rank * self.n)
        asked.left = address("left factor", left.T, torch.float32, rank * self.m)
        asked.shift, asked.times = None, 0.0
        if shift is not None:
            asked.shift = address("shift", shift[0], torch.float32, self.m)
            asked.times = shift[1]
        asked.scales[:] = (*scales, 0.0)[:2]
        self._kept = left, right, shift

    def fits(self, left: Tensor, right: Tensor, scales: Sequence[float]) -> bool:
        """Whether `aim` takes these, by the kernels that are loaded now."""
        sizes = (len(left), len(right), left.shape[1], len(scales))
        mine = (self.m, self.n, self.rank, self.parts)
        return sizes == mine and self.on is native.loaded()

    def rest(self) -> None:
        """Let go of the factors until `aim` brings others."""
        self._kept = None

    @property
    def differs(self) -> bool:
        """Whether the last `given` was seen to be that of another x; out is then of no use."""
        return self._other.value != 0

    def takes(self, x: Tensor) -> bool:
        """Whether an input is what it is made for: (..., n), contiguous, float32, CPU."""
        return is_plain(x) and x.shape[-1] == self.n

    def inner(self, into: probe.Inner) -> tuple[Tensor, Tensor]:
        """Fill in what others need to make its x right; returns what is to be kept for that."""
        asked = self._asked
        into.right, into.rank = asked.right, self.rank
        into.scales[:] = asked.scales if self.parts > 1 else (asked.scales[0],) * 2
        return self._kept

    def add_(
        self,
        out: Tensor,
        x: Tensor,
        relu: bool = False,
        given: Given | None = None,
        following: Inners | None = None,
    ) -> bool:
        """out += scale (x right leftᵀ + shift), if out is what it is made for: whether it is.

        Args:
            out: (rows, ..., m), contiguous, float32, CPU.
            x: (rows, ..., n), see `takes`; rows a multiple of the number of scales.
            relu: whether out then becomes its relu, as torch has it.
            given: what `Inners` put there for this layer when x was written; `differs` then tells
                whether x has another bit at one of the marks.
            following: what is to be made of out, with `room` for its rows.

        Raises:
            ValueError: `given` is of other rows, or `following` of another width.
        """
        rows = x.numel() // self.n
        if not (is_plain(out) and out.numel() == rows * self.m):
            return False
        asked = self._asked
        asked.out, asked.x, asked.rows = out.data_ptr(), x.data_ptr(), rows // self.parts
        if given is not None and given[0].numel() != (rows + _SPARE) * self.rank:
            raise ValueError(f"given: {given[0].numel()} numbers for {rows} rows, rank {self.rank}")
        asked.relu = relu
        asked.given = None if given is None else given[0].data_ptr()
        asked.given_marks = None if given is None else given[1].data_ptr()
        tell(asked, following, self.m)
        self._other.value = 0
        self._lots[0].count = rows
        self.on.run_packed(self._lots, 1, rows * (self.n + self.m))
        return True


def is_plain(tensor: Tensor) -> bool:
    """Whether kernels can walk over an activation: float32, contiguous, CPU, no subclass."""
    plain = type(tensor) is Tensor and tensor.dtype is torch.float32
    return plain and tensor.is_cpu and tensor.is_contiguous()
