"""Weights as float32 and back in Triton: bit for bit what torch and `rounding` do.

16-bit weights come as integers. bfloat16 is rounded by its bits, because Triton's interpreter,
which the tests run, does not round a tie to even.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT32 = tl.constexpr(0)
BFLOAT16 = tl.constexpr(1)
FLOAT16 = tl.constexpr(2)


@triton.jit
def read(at, lane, low, high, DTYPE: tl.constexpr):
    """Weights at + lane, float32; 0 where the lane is not in [low, high).

    A tile that is whole is read without a mask, because a masked read is not made in vectors.
    """
    if low == 0 and high == lane.shape[0]:
        x = tl.load(at + lane)
    else:
        x = tl.load(at + lane, mask=(lane >= low) & (lane < high), other=0)
    if DTYPE == BFLOAT16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == FLOAT16:
        x = x.to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def write(at, lane, low, high, x, DTYPE: tl.constexpr):
    """Store float32 values that the dtype can hold."""
    if DTYPE == BFLOAT16:
        x = (x.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
    elif DTYPE == FLOAT16:
        x = x.to(tl.float16).to(tl.int16, bitcast=True)
    if low == 0 and high == lane.shape[0]:
        tl.store(at + lane, x)
    else:
        tl.store(at + lane, x, mask=(lane >= low) & (lane < high))


@triton.jit
def nearest(x, DTYPE: tl.constexpr):
    """float32 rounded to what the dtype can hold, ties to even."""
    if DTYPE == BFLOAT16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        x = tl.where(nan, 0x7FC00000, rounded).to(tl.uint32).to(tl.float32, bitcast=True)
    elif DTYPE == FLOAT16:
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def stochastic(x, word, DTYPE: tl.constexpr):
    """float32 to one of its two neighbours in a 16-bit dtype; overflow is left to `nearest`."""
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    if DTYPE == BFLOAT16:
        moved = (bits + (word >> 16)) & 0xFFFF0000
    else:
        moved = (bits + (word >> 19)) & 0xFFFFE000
        # Below the smallest normal number the spacing of fp16 no longer shrinks with the value.
        small = size < 0x38800000
        uniform = (word >> 8).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
        scaled = tl.where(small, size, 0).to(tl.uint32).to(tl.float32, bitcast=True) * 16777216.0
        units = (scaled + uniform).to(tl.int32).to(tl.float32) * (1.0 / 16777216.0)
        signed = units.to(tl.uint32, bitcast=True) | (bits & 0x80000000)
        moved = tl.where(small, signed, moved)
    return tl.where(size >= 0x7F800000, bits, moved).to(tl.uint32).to(tl.float32, bitcast=True)
