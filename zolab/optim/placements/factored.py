"""The part of a linear layer's output that a perturbation of low rank adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zolab.optim.native import products as native


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
    rank, flat = right.shape[1], out.view(-1, out.shape[-1])
    extra = left.shape[1] - rank
    x = x.to(out.dtype).reshape(-1, x.shape[-1])
    thin = right.T.to(out.dtype).contiguous()
    left = left.T.to(out.dtype).contiguous()
    if native.takes_thin(rank, flat, x, left, thin):
        native.add_thin_(flat, x, left, thin, scales)
        return out
    # With few columns the transposed product is several times as fast as x @ right.
    inner = F.linear(x, torch.cat((thin, thin.new_zeros(extra, len(right)))) if extra else thin)
    if extra:
        inner[:, -extra:] = 1.0
    for part, scale in zip(inner.chunk(len(scales)), scales, strict=True):
        part.mul_(scale)
    flat.addmm_(inner, left)
    return out
