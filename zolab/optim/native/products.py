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
        left: float32 (m, r), contiguous, CPU.
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
        first = address("left", left, torch.float32)
        second = address("right", right, torch.float32, rank * n)
        asked.append(probe.Product(outs[-1].data_ptr(), first, second, n, rank))
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
        factors: by seed, left (m, r) and right (r, n), float32, contiguous, all of one shape.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    left, right = next(iter(factors.values()))
    (m, rank), n = left.shape, right.shape[1]
    at = address("weight", weight, None, m * n)
    told, count = packed(terms), len(terms)
    sides = (c_void_p * count)(), (c_void_p * count)()
    for i, term in enumerate(terms):
        if term.a != 0.0:
            left, right = factors[term.seed]
            sides[0][i] = address("left", left, torch.float32, m * rank)
            sides[1][i] = address("right", right, torch.float32, rank * n)
    asked = probe.SweepProduct(DTYPES[weight.dtype], count, rank, pid, at, n, told, *sides)
    lot = on.lot("zo_sweep_product", asked, m, unit=_ROWS, weight=n)
    jobs.sweep(on, at, lot, (asked, weight, factors))


def takes_thin(rank: int, *tensors: Tensor) -> bool:
    """Whether `turned` and `add_thin_` can work on these: float32, contiguous, CPU, no subclass,
    and a CPU they are made for."""
    for t in tensors:
        plain = type(t) is Tensor or type(t) is torch.nn.Parameter
        if not (plain and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()):
            return False
    return native.available() and 0 < rank <= native._library().thin_rank


def turned(left: Tensor, last: Tensor | None = None, times: float = 1.0) -> Tensor:
    """A left factor by columns, as `add_thin_` takes it.

    Args:
        left: float32 (m, r), contiguous, CPU.
        last: float32 (m,), one row more: what every row of a batch gets.
        times: factor on it.

    Returns:
        float32 (r, m) or (r + 1, m).
    """
    on = native._library()
    m, rank = left.shape
    out = torch.empty(rank + (last is not None), m)
    at = address("left", left, torch.float32)
    more = None if last is None else address("last", last, torch.float32, m)
    asked = probe.Turn(out.data_ptr(), at, more, m, rank, times)
    on.run([on.lot("zo_turn", asked, m, unit=16, weight=rank)])
    return out


def add_thin_(
    out: Tensor, x: Tensor, left: Tensor, right: Tensor, scales: Sequence[float]
) -> Tensor:
    """`factored.add_products_`, each row of the batch passed once, in any order of summing.

    Args:
        out: (rows, m), contiguous, changed in place; all float32 on the CPU.
        x: (rows, n), contiguous.
        left: (r, m) or (r + 1, m), contiguous.
        right: (r, n), contiguous.
        scales: factors on equal parts of the rows, at most two.

    Returns:
        out.
    """
    on = native._library()
    (rows, m), (rank, n), columns = out.shape, right.shape, len(left)
    to = address("out", out, torch.float32, rows * m)
    at = address("x", x, torch.float32, rows * n)
    sides = [address("factors", side, torch.float32) for side in (right, left)]
    part = rows // len(scales)
    asked = probe.Thin(to, at, *sides, n, m, part, rank, columns, (c_float * 2)(*scales))
    on.run([on.lot("zo_thin", asked, rows, unit=4, weight=n + m)])
    return out
