"""Layer normalisation of both halves of a batch, each by weights of its own, by native kernels."""

from __future__ import annotations

from ctypes import c_void_p

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native import probe
from zolab.optim.native.pack import address


def takes_norm(x: Tensor, *weights: Tensor) -> bool:
    """Whether `norm` can work on these: float32, contiguous, CPU, weights as long as a row."""
    plain = type(x) is Tensor and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()
    fits = all(w.dtype is torch.float32 and w.is_cpu and w.shape == x.shape[-1:] for w in weights)
    return plain and fits and x.shape[0] % 2 == 0 and native.available()


def norm(
    x: Tensor, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension of x.

    Args:
        x: (rows, ..., n), see `takes_norm`.
        weight, bias: (n,) for the first half of the rows, and for the second; contiguous.
        eps: beside the variance.

    Returns:
        Of the shape of x.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = native._library()
    n, out = x.shape[-1], torch.empty_like(x)
    sides = [
        (c_void_p * 2)(*(address("weight", part, torch.float32, n) for part in both))
        for both in (weight, bias)
    ]
    at, rows = address("x", x, torch.float32), x.numel() // max(1, n)
    asked = probe.Norm(out.data_ptr(), at, *sides, n, rows, eps)
    on.run([on.lot("zo_norm", asked, rows, unit=1, weight=n)])
    return out
