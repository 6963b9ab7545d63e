"""Products of thin factors, z = left @ right, with bits that no order of summing can change.

A factor is made of multiples of one power of two, so coarse that a sum of `rank` products of two
such numbers fits in the 53 bits of float64. So every partial sum is exact, whoever makes it and in
whatever order, fused or not; z is the sum rounded to float32, once. What that costs: a Gaussian
number keeps 23 bits behind the point at rank 2, 20 at rank 48.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zolab.optim.backend import Term, apply_term_
from zolab.optim.native import products as native

#: Elements of a product that plain torch makes at once in a sweep: they stay in a core's cache.
PIECE = 1 << 18


def snap_(factor: Tensor, rank: int, bound: float | Tensor, scale: float = 1.0) -> Tensor:
    """Round factor * scale to what products are exact for, in place.

    Args:
        factor: float32, any shape.
        rank: terms of a sum.
        bound: a power of two that no element of it exceeds in magnitude; a tensor of one element
            where it is decided on a device.
        scale: factor on it.

    Returns:
        factor.
    """
    unit = bound * 2.0 ** -((53 - (rank - 1).bit_length()) // 2)
    # By powers of two, so it is factor * scale that is rounded, to float32 and then to the unit.
    return factor.mul_(scale / unit).round_().mul_(unit)


def bound_of(factor: Tensor) -> Tensor:
    """The least power of two above every magnitude, at least 2**-89: float32 ()."""
    largest = factor.abs().amax().clamp_min(2.0**-90)
    return (largest.view(torch.int32) & 0x7F800000).view(torch.float32) * 2.0


def factor_shape(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Shape (m, n) in which a tensor is factorised.

    Its own, dimensions after the first taken together; the most nearly square one where a side is
    shorter than twice the rank, as SubZero's code does for LoRA and prefix tensors.
    """
    m, n = shape[0], math.prod(shape[1:])
    if min(m, n) >= 2 * rank:
        return m, n
    total = m * n
    side = next(k for k in range(math.isqrt(total), 0, -1) if total % k == 0)
    return side, total // side


def is_native(rank: int, weight: Tensor) -> bool:
    """Whether a sweep over a weight goes by the native kernels."""
    return native.takes(rank, weight)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, exact before it is rounded.

    Args:
        left: float32 (m, r), snapped.
        right: float32 (r, n), snapped.

    Returns:
        float32 (m, n), without negative zeros.
    """
    if native.takes(len(right), right):
        return native.product(left, right)
    return _multiplied(left.double(), right.double())


def sweep_(
    weight: Tensor,
    pid: int,
    terms: Sequence[Term],
    factors: Mapping[int, tuple[Tensor, Tensor]],
) -> None:
    """`backend.sweep_` along products.

    Args:
        weight: m n elements, contiguous, any dtype that sweeps take.
        pid: parameter id.
        terms: operations, see `Term`.
        factors: by the seeds of the terms, left (m, r) and right (r, n), snapped.
    """
    left, right = next(iter(factors.values()))
    if native.takes(len(right), weight, right):
        native.sweep(weight, pid, terms, factors)
        return
    rows = weight.view(len(left), right.shape[1])
    at_once = max(1, PIECE // rows.shape[1])
    wide = {seed: (a.double(), b.double()) for seed, (a, b) in factors.items()}
    for start in range(0, len(rows), at_once):
        part, z, z_seed = rows[start : start + at_once].view(-1), None, None
        for term in terms:
            if term.a != 0.0 and term.seed != z_seed:
                first, second = wide[term.seed]
                z = _multiplied(first[start : start + at_once], second).view(-1)
                z_seed = term.seed
            apply_term_(part, part if z is None else z, term, pid, start * rows.shape[1], None)


def _multiplied(left: Tensor, right: Tensor) -> Tensor:
    # The sign of a sum of zeros does depend on the order: plus, always.
    return (left @ right).float().add_(0.0)
