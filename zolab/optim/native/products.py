"""Products of thin factors, and sweeps along them, by the native kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import Array, c_void_p, pointer
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
    at, lot, asked = _told(on, weight, pid, terms, packed(terms), factors)
    jobs.sweep(on, at, lot, (asked, weight, factors))


#: Some parameters that get the same terms: weights, id, and factors as `sweep` takes them, or None
#: where z is noise.
Group = tuple[Sequence["Term"], Sequence[tuple[Tensor, int, Mapping | None]]]


def sweeps(kind: str, groups: Sequence[Group]) -> None:
    """`sweep`, or `native.sweep` without a mask, of many parameters at once.

    Args:
        kind: the noise of those without factors.
        groups: what each parameter gets; no two share weights.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    code, free = native._KINDS[kind], pointer(probe.Mask())
    lots, keep = [], []
    for terms, those in groups:
        told, count = packed(terms), len(terms)
        for weight, pid, factors in those:
            if factors is not None:
                _, lot, asked = _told(on, weight, pid, terms, told, factors)
            else:
                at, dtype = address("weight", weight), DTYPES[weight.dtype]
                asked = probe.Sweep(code, dtype, count, pid, at, free, 0, told, on.levels)
                lot = on.lot("zo_sweep", asked, weight.numel())
            lots.append(lot)
            keep.append(asked)
    jobs.settle()
    on.run(lots)


def _told(
    on: jobs.Library,
    weight: Tensor,
    pid: int,
    terms: Sequence[Term],
    told: Array[probe.Term],
    factors: Mapping[int, tuple[Tensor, Tensor]],
) -> tuple[int, probe.Lot, probe.SweepProduct]:
    """A sweep along products as C takes it; its weights' address comes first."""
    left, right = next(iter(factors.values()))
    (m, rank), n = left.shape, right.shape[1]
    at, count = address("weight", weight, None, m * n), len(terms)
    sides = (probe.Left * count)(), (c_void_p * count)()
    for i, term in enumerate(terms):
        if term.a != 0.0:
            left, right = factors[term.seed]
            sides[0][i] = _left(left, m)
            sides[1][i] = address("right", right, torch.float32, rank * n)
    asked = probe.SweepProduct(DTYPES[weight.dtype], count, rank, pid, at, n, told, *sides)
    return at, on.lot("zo_sweep_product", asked, m, unit=_ROWS, weight=n), asked


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
