"""Masks held as one bit a weight, or as the places of the few that move."""

from __future__ import annotations

from dataclasses import dataclass

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


def mask_rows(mask: Tensor | Places, index: Tensor, shape: torch.Size) -> Tensor:
    """Rows `index` of a mask, however it is held: bool of `shape`, (len(index), width).

    Args:
        mask: bool (rows, width), or uint8 as `pack_bits` makes it, width a multiple of 8, or
            places.
        index: int64 (rows asked for,), in order, each once.
        shape: of the result.
    """
    if isinstance(mask, Places):
        return mask.rows(index, shape[1])
    if mask.dtype == torch.bool:
        return mask[index]
    return unpack_bits(mask.view(-1, shape[1] // 8)[index].view(-1), shape)


def _bits(device: torch.device) -> Tensor:
    return 1 << torch.arange(8, dtype=torch.uint8, device=device)


#: Elements of one of the tiles that places are counted within: that of the native kernels.
TILE = 2048
#: Places take fewer bytes than bits up to this share of moving weights.
FEW = 1 / 20


@dataclass(frozen=True)
class Places:
    """A mask held as the places of what moves, where that is little.

    Attributes:
        places: uint16 as int16 (moving,), in order, each counted from the start of its tile.
        starts: int32 (tiles + 1,), where in `places` those of each tile begin.
        size: elements of the parameter.
    """

    places: Tensor
    starts: Tensor
    size: int

    @classmethod
    def of(cls, mask: Tensor) -> Places | None:
        """The places of a bool tensor; None if more than `FEW` move, or they cannot be counted."""
        count = int(torch.count_nonzero(mask))
        if count > FEW * mask.numel() or count >= 1 << 31:
            return None
        starts = torch.zeros(-(-mask.numel() // TILE) + 1, dtype=torch.int32)
        places, done = torch.empty(count, dtype=torch.int16), 0
        for number, part in enumerate(mask.view(-1).split(PIECE)):
            found = part.nonzero().view(-1)
            tile = number * (PIECE // TILE)
            last = -(-len(part) // TILE)
            counts = torch.bincount(found // TILE, minlength=last)
            starts[tile + 1 : tile + 1 + last] = done + counts.cumsum(0)
            places[done : done + len(found)] = (found % TILE).to(torch.int16)
            done += len(found)
        return cls(places, starts, mask.numel())

    def elements(self, tiles: Tensor) -> Tensor:
        """What moves in some tiles (int64, in order), as indices of elements: int64, in order."""
        begin = self.starts[tiles].long()
        counts = self.starts[tiles + 1] - begin
        which = torch.repeat_interleave(torch.arange(len(tiles)), counts)
        skipped = (begin - (counts.cumsum(0) - counts))[which]
        place = self.places[torch.arange(len(which)) + skipped]
        return tiles[which] * TILE + place

    def spread(self, shape: torch.Size) -> Tensor:
        """The bool tensor of `shape` that `of` was given."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        for tiles in torch.arange(len(self.starts) - 1).split(PIECE // TILE):
            mask[self.elements(tiles)] = True
        return mask.view(shape)

    def rows(self, index: Tensor, width: int) -> Tensor:
        """Some rows of it: bool (len(index), width); index int64, in order, each once."""
        out = torch.zeros(len(index), width, dtype=torch.bool)
        if len(index) == 0:
            return out
        reach = torch.arange((width - 1) // TILE + 2)
        first, last = index * width // TILE, ((index + 1) * width - 1) // TILE
        tiles = torch.minimum(first[:, None] + reach, last[:, None]).unique()
        element = self.elements(tiles)
        row = torch.searchsorted(index, element // width).clamp_(max=len(index) - 1)
        asked = index[row] == element // width
        out[row[asked], element[asked] % width] = True
        return out
