"""Products of thin factors, and sweeps along them, by the native kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_float, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native import jobs, probe
from zolab.optim.native.pack import DTYPES, address, packed

if TYPE_CHECKING:
    from zolab.optim.backend import Term

#: Rows of a product that C makes together; threads get whole lots of them.
_ROWS = 8


def takes(rank: int, *tensors: Tensor) -> bool:
    """Whether the kernels can work on these weights or factors."""
    # Which noise is asked for does not matter: none is made.
    able = all(native.handles("gauss", tensor) for tensor in tensors)
    return able and 0 < rank <= native._library().lib.zo_max_rank()


def product(left: Tensor, right: Tensor) -> Tensor:
    """`products.product` of factors that were snapped.

    Args:
        left: float32 (m, r), CPU.
        right: float32 (r, n), contiguous, CPU.

    Returns:
        float32 (m, n).

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    return products([(left, right)])[0]


def products(factors: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """`product` of each pair of factors."""
    on = native._library()
    outs, asked, lots = [], [], []
    for left, right in factors:
        (m, rank), n = left.shape, right.shape[1]
        outs.append(torch.empty(m, n))
        second = address("right", right, torch.float32, rank * n)
        asked.append(probe.Product(outs[-1].data_ptr(), _left(left), second, n, rank))
        lots.append(on.lot("zo_product", asked[-1], m, unit=_ROWS, weight=n))
    on.run(lots)
    return outs


def sweep(
    weight: Tensor,
    pid: int,
    terms: Sequence[Term],
    factors: Mapping[int, tuple[Tensor, Tensor]],
) -> None:
    """`products.sweep_` in one pass over memory.

    Args:
        weight: m n elements, contiguous, CPU; float32, float64, bfloat16 or float16; changed in
            place.
        pid: parameter id below 2**32.
        terms: operations, applied in order, each rounded to the dtype of `weight`.
        factors: by seed, left (m, r) and right (r, n), float32, all of one shape; right
            contiguous.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    left, right = next(iter(factors.values()))
    (m, rank), n = left.shape, right.shape[1]
    at = address("weight", weight, None, m * n)
    told, count = packed(terms), len(terms)
    sides = (probe.Left * count)(), (c_void_p * count)()
    for i, term in enumerate(terms):
        if term.a != 0.0:
            left, right = factors[term.seed]
            sides[0][i] = _left(left, m)
            sides[1][i] = address("right", right, torch.float32, rank * n)
    asked = probe.SweepProduct(DTYPES[weight.dtype], count, rank, pid, at, n, told, *sides)
    lot = on.lot("zo_sweep_product", asked, m, unit=_ROWS, weight=n)
    jobs.sweep(on, at, lot, (asked, weight, factors))


def _left(left: Tensor, rows: int | None = None) -> probe.Left:
    """A left factor as C takes it, whichever way it lies in memory."""
    fits = rows is None or len(left) == rows
    if not (fits and left.dtype is torch.float32 and left.is_cpu and left.dim() == 2):
        raise ValueError(
            f"left: {tuple(left.shape)} {left.dtype} on {left.device}: expected float32 on the CPU "
            f"with {rows} rows"
        )
    return probe.Left(left.data_ptr(), *left.stride())


def by_columns(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same factors, each column in one piece of memory.

    Args:
        factors: float32 (m, r), contiguous, CPU.
    """
    on = native._library()
    outs, asked, lots = [], [], []
    for factor in factors:
        m, rank = factor.shape
        outs.append(torch.empty(rank, m))
        at = address("factor", factor, torch.float32)
        asked.append(probe.Turn(outs[-1].data_ptr(), at, m, rank))
        lots.append(on.lot("zo_turn", asked[-1], m, unit=16, weight=rank))
    on.run(lots)
    return [out.T for out in outs]


def takes_thin(rank: int) -> bool:
    """Whether there is `Thin` for a rank here, and a CPU it is made for."""
    return native.available() and 0 < rank <= native._library().thin_rank


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
        self._on = native._library()
        (self.m, rank), self.n = left.shape, len(right)
        self.parts = len(scales)
        more, times = shift or (None, 0.0)
        sides = [address("factor", side.T, torch.float32) for side in (right, left)]
        sides.append(None if more is None else address("shift", more, torch.float32, self.m))
        both = (c_float * 2)(*scales)
        self._asked = probe.Thin(None, None, *sides, self.n, self.m, 0, rank, 0, times, both)
        self._lots = (probe.Lot * 1)()
        self._lots[0] = self._on.lot("zo_thin", self._asked, 0, unit=4, weight=self.n + self.m)
        self._kept = left, right, more

    def takes(self, x: Tensor) -> bool:
        """Whether an input is what it is made for: (..., n), contiguous, float32, CPU."""
        return _is_plain(x) and x.shape[-1] == self.n

    def add_(self, out: Tensor, x: Tensor, relu: bool = False) -> bool:
        """out += scale (x right leftᵀ + shift), if out is what it is made for: whether it is.

        Args:
            out: (rows, ..., m), contiguous, float32, CPU.
            x: (rows, ..., n), see `takes`; rows a multiple of the number of scales.
            relu: whether out then becomes its relu, as torch has it.
        """
        rows = x.numel() // self.n
        if not (_is_plain(out) and out.numel() == rows * self.m):
            return False
        asked = self._asked
        asked.out, asked.x, asked.rows = out.data_ptr(), x.data_ptr(), rows // self.parts
        asked.relu = relu
        self._lots[0].count = rows
        self._on.run_packed(self._lots, 1, rows * (self.n + self.m))
        return True


def _is_plain(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.dtype is torch.float32
    return plain and tensor.is_cpu and tensor.is_contiguous()
