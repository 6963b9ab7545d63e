"""What perturbations of low rank add to linear layers, by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native import probe
from zolab.optim.native.pack import address


def takes_thin(rank: int) -> bool:
    """Whether there is `Thin` for a rank here, and a CPU it is made for."""
    return native.available() and 0 < rank <= native.loaded().thin_rank


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
        self._asked = probe.Thin(n=self.n, m=self.m, rank=self.rank)
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

    def takes(self, x: Tensor) -> bool:
        """Whether an input is what it is made for: (..., n), contiguous, float32, CPU."""
        return is_plain(x) and x.shape[-1] == self.n

    def add_(self, out: Tensor, x: Tensor, relu: bool = False) -> bool:
        """out += scale (x right leftᵀ + shift), if out is what it is made for: whether it is.

        Args:
            out: (rows, ..., m), contiguous, float32, CPU.
            x: (rows, ..., n), see `takes`; rows a multiple of the number of scales.
            relu: whether out then becomes its relu, as torch has it.
        """
        rows = x.numel() // self.n
        if not (is_plain(out) and out.numel() == rows * self.m):
            return False
        asked = self._asked
        asked.out, asked.x, asked.rows = out.data_ptr(), x.data_ptr(), rows // self.parts
        asked.relu = relu
        self._lots[0].count = rows
        self.on.run_packed(self._lots, 1, rows * (self.n + self.m))
        return True


def is_plain(tensor: Tensor) -> bool:
    """Whether kernels can walk over an activation: float32, contiguous, CPU, no subclass."""
    plain = type(tensor) is Tensor and tensor.dtype is torch.float32
    return plain and tensor.is_cpu and tensor.is_contiguous()
