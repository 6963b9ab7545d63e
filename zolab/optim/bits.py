"""Masks held as one bit a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.backend import PIECE


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8, eight coordinates a byte: (ceil(numel / 8),)."""
    bit = _bits(mask.device)
    flat = mask.view(-1)
    out = torch.empty(-(-len(flat) // 8), dtype=torch.uint8, device=mask.device)
    for part, to in zip(flat.split(PIECE), out.split(PIECE // 8), strict=True):
        padded = torch.nn.functional.pad(part.view(torch.uint8), (0, -len(part) % 8))
        torch.sum(padded.view(-1, 8) * bit, 1, dtype=torch.uint8, out=to)
    return out


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` was given."""
    bit = _bits(packed.device)
    mask = torch.empty(shape, dtype=torch.bool, device=packed.device)
    for part, out in zip(packed.split(PIECE // 8), mask.view(-1).split(PIECE), strict=True):
        out.copy_((part[:, None] & bit).view(-1)[: len(out)])
    return mask


def mask_rows(mask: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """Rows `index` of a mask, held whole or as bits: bool of `shape`, (len(index), width).

    Args:
        mask: bool (rows, width), or uint8 as `pack_bits` makes it, width a multiple of 8.
        index: int64 (rows asked for,).
        shape: of the result.
    """
    if mask.dtype == torch.bool:
        return mask[index]
    return unpack_bits(mask.view(-1, shape[1] // 8)[index].view(-1), shape)


def _bits(device: torch.device) -> Tensor:
    return 1 << torch.arange(8, dtype=torch.uint8, device=device)
