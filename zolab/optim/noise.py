"""Noise kinds: how Philox words become the elements of a direction z.

`z(seed, pid, element)` never depends on chunking, order, threads or device. Arithmetic is fp32
multiply, then add, never fused; square roots go through float64, because torch's fp32 square root
is not correctly rounded on every CPU.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from zolab.optim import fast
from zolab.optim.philox import CHUNK, Stream, at_once, block_words, philox

# ln(1 + m) / m^3 on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first, and ln 2 in two parts.
LN = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SQRT_HALF_BITS = 0x3F3504F3
HALF_PI = 1.57079632679
SQRT_HALF = 0.70710678118
TINY = 1.0 / 8388608.0  # 2**-23


class Noise(ABC):
    """One kind of zero-mean, unit-variance, independent noise.

    Attributes:
        kind: name in configs.
        per_block: elements made from one Philox counter.
    """

    kind: str
    per_block: int

    @abstractmethod
    def blocks(
        self,
        block: Tensor,
        seed: int,
        pid: int | Tensor,
        stream: int = Stream.Z,
        out: Tensor | None = None,
    ) -> Tensor:
        """Elements of the given counters: float32 (len(block), per_block).

        Args:
            block: int64 (n,).
            seed: 64-bit key.
            pid: one parameter id, or one for each counter, int64 (n,).
            stream: last word of the counter.
            out: where to write them, contiguous, at an even place of its memory.
        """

    def _room(self, block: Tensor) -> Tensor:
        return torch.empty(len(block), self.per_block, device=block.device)

    def fill(
        self, out: Tensor, seed: int, pid: int, offset: int = 0, stream: int = Stream.Z
    ) -> None:
        """Write elements `offset` ... of z into `out`, float32 (n,), contiguous."""
        on = fast.kernels(self.kind, out)
        if on is not None:
            on.fill(self.kind, out, seed, pid, offset, stream)
            return
        step = at_once() * self.per_block
        for start in range(0, out.numel(), step):
            part = out[start : start + step]
            first = (offset + start) // self.per_block
            last = (offset + start + part.numel() - 1) // self.per_block + 1
            block = torch.arange(first, last, dtype=torch.int64, device=out.device)
            skip = offset + start - first * self.per_block
            if len(block) * self.per_block == part.numel() and part.storage_offset() % 2 == 0:
                self.blocks(block, seed, pid, stream, out=part.view(len(block), self.per_block))
                continue
            values = self.blocks(block, seed, pid, stream).view(-1)
            part.copy_(values[skip : skip + part.numel()])

    def rows(
        self, index: Tensor, width: int, seed: int, pid: int, stream: int = Stream.Z
    ) -> Tensor:
        """Rows of z of a (rows, width) parameter: float32 (len(index), width); index int64."""
        on = fast.kernels(self.kind, torch.empty(0, device=index.device))
        if on is not None:
            return on.rows(self.kind, index, width, seed, pid, stream)
        per_row = (width - 1) // self.per_block + 2  # a row may start inside a block
        begin = index * width
        first = begin // self.per_block
        block = first[:, None] + torch.arange(per_row, device=index.device)
        out = torch.empty(len(index), width, device=index.device)
        rows_at_once = max(1, CHUNK // per_row)
        column = torch.arange(width, device=index.device)
        for i in range(0, len(index), rows_at_once):
            part = block[i : i + rows_at_once]
            values = self.blocks(part.reshape(-1), seed, pid, stream).view(len(part), -1)
            skip = (begin - first * self.per_block)[i : i + rows_at_once, None]
            torch.gather(values, 1, skip + column, out=out[i : i + rows_at_once])
        return out


class Gauss(Noise):
    """Standard normal by Box-Muller: element e is in counter e >> 2; words (0,1), (2,3) pair up."""

    kind = "gauss"
    per_block = 4

    def blocks(
        self,
        block: Tensor,
        seed: int,
        pid: int | Tensor,
        stream: int = Stream.Z,
        out: Tensor | None = None,
    ) -> Tensor:
        w0, w1, w2, w3 = philox(block, seed, pid, stream)
        radius = _radius(torch.stack((w0, w2), dim=1).to(torch.int32))
        out = self._room(block) if out is None else out
        pairs = out.view(len(block), 2, 2)
        _sincos(torch.stack((w1, w3), dim=1).to(torch.int32), pairs[..., 1], pairs[..., 0])
        pairs.mul_(radius.unsqueeze(2))
        return out


class Gauss8(Noise):
    """256 equally likely levels of a normal, scaled to variance 1: one random byte per element."""

    kind = "gauss8"
    per_block = 16

    def blocks(
        self,
        block: Tensor,
        seed: int,
        pid: int | Tensor,
        stream: int = Stream.Z,
        out: Tensor | None = None,
    ) -> Tensor:
        out = self._room(block) if out is None else out
        # Two bytes in little-endian order look up two levels, which are carried as one float64.
        index = block_words(block, seed, pid, stream).view(torch.uint16).view(-1).to(torch.int32)
        table = _table(gauss8_pairs, block.device)
        torch.index_select(table, 0, index, out=out.view(torch.float64).view(-1))
        return out


class Rademacher(Noise):
    """+1 or -1 by one random bit: element e uses bit e & 127 of counter e >> 7 (bit set: -1)."""

    kind = "rademacher"
    per_block = 128

    def blocks(
        self,
        block: Tensor,
        seed: int,
        pid: int | Tensor,
        stream: int = Stream.Z,
        out: Tensor | None = None,
    ) -> Tensor:
        out = self._room(block) if out is None else out
        # A byte, in little-endian order, looks up eight signs.
        index = block_words(block, seed, pid, stream).view(torch.uint8).view(-1).to(torch.int32)
        table = _table(rademacher_bytes, block.device)
        torch.index_select(table, 0, index, out=out.view(-1, 8))
        return out


@functools.cache
def _table(make: Callable[[], Tensor], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return make().to(device)


NOISES: dict[str, type[Noise]] = {cls.kind: cls for cls in (Gauss, Gauss8, Rademacher)}


def make_noise(kind: str) -> Noise:
    """The noise of a name; ValueError naming what is allowed."""
    if kind not in NOISES:
        raise ValueError(f"noise = {kind!r}: expected one of {', '.join(NOISES)}")
    return NOISES[kind]()


def gauss8_table() -> Tensor:
    """The 256 levels: float32 (256,), antisymmetric, mean 0, variance 1, largest 2.97."""
    quantile = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    level = torch.special.ndtri(quantile)
    level = (level - level.flip(0)) / 2
    return (level / level.square().mean().sqrt()).float()


def gauss8_pairs() -> Tensor:
    """Levels of the low and the high byte of 16 bits, side by side: float64 (65536,) by name."""
    level = gauss8_table()
    both = torch.stack((level.repeat(256), level.repeat_interleave(256)), dim=1)
    return both.view(torch.float64).view(-1)


def rademacher_bytes() -> Tensor:
    """The signs that a byte's bits stand for, lowest first: float32 (256, 8), set: -1."""
    bit = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return 1.0 - 2.0 * bit.to(torch.float32)


def _radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u) for u = (word >> 9 + 1/2) 2**-23 in (0, 1); int32 words to float32."""
    u = (word >> 9).bitwise_and_(0x7FFFFF).to(torch.float32).add_(0.5).mul_(TINY)
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS).bitwise_right_shift_(23)
    m = bits.sub_(exponent << 23).view(torch.float32).sub_(1.0)
    y = (m * LN[0]).add_(LN[1])
    for coefficient in LN[2:]:
        y.mul_(m).add_(coefficient)
    square = m * m
    y.mul_(m).mul_(square)
    e = exponent.to(torch.float32)
    y.add_(e * LN2_LOW).sub_(square.mul_(0.5)).add_(m).add_(e.mul_(LN2_HIGH))
    return y.mul_(-2.0).to(torch.float64).sqrt_().to(torch.float32)


def _sincos(word: Tensor, out_sin: Tensor, out_cos: Tensor) -> None:
    """Sine and cosine of a uniform angle: quadrant in the top two bits, 23 bits within it."""
    angle = (word >> 7).bitwise_and_(0x7FFFFF).to(torch.float32)
    angle.add_(0.5).mul_(TINY).sub_(0.5).mul_(HALF_PI)
    square = angle * angle
    sine = (square * SIN[0]).add_(SIN[1])
    sine.mul_(square).add_(SIN[2]).mul_(square).mul_(angle).add_(angle)
    cosine = (square * COS[0]).add_(COS[1])
    cosine.mul_(square).add_(COS[2]).mul_(square).mul_(square)
    cosine.sub_(square.mul_(0.5)).add_(1.0)
    # Angles were taken about the middle of the quadrant: turn by 45 degrees, then by the quadrant.
    # Quadrants 1 and 3 turn (cos, sin) into (-sin, cos); 2 and 3 flip both signs. Signs are flipped
    # by their bit, which is exact.
    turned_cos = (cosine - sine).mul_(SQRT_HALF)
    turned_sin = cosine.add_(sine).mul_(SQRT_HALF)
    odd = (word & (1 << 30)).ne_(0).to(torch.bool)
    torch.where(odd, turned_cos, turned_sin, out=out_sin)
    torch.where(odd, turned_sin.neg_(), turned_cos, out=out_cos)
    sign = word.bitwise_and_(-(1 << 31))
    for out in (out_sin, out_cos):
        out.view(torch.int32).bitwise_xor_(sign)


def rounding_unit(dtype: torch.dtype, magnitude: float) -> float:
    """Spacing of numbers of `dtype` near `magnitude` (ulp), for warnings about eps and lr."""
    digits = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}[dtype]
    return 2.0 ** (math.floor(math.log2(magnitude)) - digits) if magnitude > 0 else 0.0


def root_mean_square(weight: Tensor) -> float:
    """Size of the weights of a contiguous tensor, 0 for an empty one; makes no copy of it."""
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for part in weight.view(-1).split(1 << 20):
        total += torch.linalg.vector_norm(part.float()).double().square()
    return math.sqrt(float(total) / max(1, weight.numel()))
