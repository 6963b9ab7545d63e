"""The part of a linear layer's output that a perturbation of low rank adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zolab.optim.native import products as native


def add_products_(
    out: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    scales: Sequence[float],
    shift: tuple[Tensor, float] | None = None,
) -> Tensor:
    """out += scale ((x right) leftᵀ + shift), the batch cut into as many parts as there are scales.

    So x (W + scale left rightᵀ)ᵀ costs two thin products beside x Wᵀ, and x Wᵀ is made once for all
    parts.

    Args:
        out: (rows, ..., m), contiguous, changed in place: x Wᵀ with its bias.
        x: (rows, ..., n), rows a multiple of the number of scales.
        left: float32 (m, r).
        right: float32 (n, r).
        scales: one or two factors on the parts, in order of their rows.
        shift: what every row gets, float32 (m,), and a factor on it.

    Returns:
        out.
    """
    rank, flat = right.shape[1], out.view(-1, out.shape[-1])
    x = x.to(out.dtype).reshape(-1, x.shape[-1])
    thin = right.T.to(out.dtype).contiguous()
    if native.takes_thin(rank, flat, x, left, thin):
        native.add_thin_(flat, x, native.turned(left, *shift or ()), thin, scales)
        return out
    if shift is not None:
        left = torch.cat((left, (shift[0] * shift[1])[:, None]), dim=1)
        thin = torch.cat((thin, thin.new_zeros(1, len(right))))
    # With few columns the transposed product is several times as fast as x @ right.
    inner = F.linear(x, thin)
    if shift is not None:
        inner[:, -1:] = 1.0
    for part, scale in zip(inner.chunk(len(scales)), scales, strict=True):
        part.mul_(scale)
    flat.addmm_(inner, left.T.to(out.dtype))
    return out
