"""The part of a linear layer's output that a perturbation of low rank adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def add_products_(
    out: Tensor, x: Tensor, left: Tensor, right: Tensor, scales: Sequence[float]
) -> Tensor:
    """out += scale (x right) leftᵀ, in place, the batch cut into as many parts as there are scales.

    So x (W + scale left rightᵀ)ᵀ costs two thin products beside x Wᵀ, and x Wᵀ is made once for all
    parts. The left factor may have one more column than the right one: what is added to every row,
    for a bias.

    Args:
        out: (rows, ..., m), contiguous: x Wᵀ with its bias.
        x: (rows, ..., n), rows a multiple of the number of scales.
        left: float32 (m, r) or (m, r + 1).
        right: float32 (n, r).
        scales: factors on the parts, in order of their rows.

    Returns:
        out.
    """
    extra = left.shape[1] - right.shape[1]
    thin = right.T.to(out.dtype, memory_format=torch.contiguous_format)
    if extra:
        thin = torch.cat((thin, thin.new_zeros(extra, len(right))))
    # With few columns the transposed product is several times as fast as x @ right.
    inner = F.linear(x.to(out.dtype).reshape(-1, x.shape[-1]), thin)
    if extra:
        inner[:, -extra:] = 1.0
    left = left.to(out.dtype).T
    halves = zip(
        out.view(-1, out.shape[-1]).chunk(len(scales)),
        inner.chunk(len(scales)),
        scales,
        strict=True,
    )
    for part, thin, scale in halves:
        part.addmm_(thin, left, alpha=scale)
    return out
