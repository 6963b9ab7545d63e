"""Stochastic rounding to 16 bits, from the step's own Philox words."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.philox import Stream, words

_FP16_SMALLEST_NORMAL = 2.0**-14
_FP16_SUBNORMAL_ULP = 2.0**-24


def stochastic_round(
    value: Tensor, dtype: torch.dtype, seed: int, pid: int, offset: int = 0
) -> Tensor:
    """Round float32 to one of its two neighbours in `dtype`, unbiased.

    A value that `dtype` can hold is returned unchanged. Element e uses word e of stream
    `Stream.ROUNDING`, so the result does not depend on chunking.

    Args:
        value: float32 (n,); not modified.
        dtype: torch.bfloat16 or torch.float16.
        offset: index of the first element within its parameter.
    """
    word = words(offset, value.numel(), seed, pid, Stream.ROUNDING, device=value.device)
    bits = value.view(torch.int32)
    if dtype == torch.bfloat16:
        noise = (word >> 16).to(torch.int32)
        rounded = (bits + noise) & -(1 << 16)
    else:
        noise = (word >> 19).to(torch.int32)
        rounded = (bits + noise) & -(1 << 13)
    out = rounded.view(torch.float32)
    if dtype == torch.float16:
        # Below the smallest normal number the spacing of fp16 no longer shrinks with the value.
        scaled = value.abs() / _FP16_SUBNORMAL_ULP
        uniform = (word >> 8).to(torch.float32) * 2.0**-24
        small = torch.floor(scaled + uniform) * _FP16_SUBNORMAL_ULP
        out = torch.where(value.abs() < _FP16_SMALLEST_NORMAL, torch.copysign(small, value), out)
    out = torch.where(torch.isfinite(value), out, value)
    return out.to(dtype)
