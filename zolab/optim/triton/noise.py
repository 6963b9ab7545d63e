"""Philox words and the elements of z in Triton: bit for bit what `philox` and `noise` do.

Imported only where Triton is. Everything works on whole tiles: the first element of a tile is a
multiple of its length, so that the low word of a counter never wraps within one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zolab.optim import noise as spec

GAUSS = tl.constexpr(0)
GAUSS8 = tl.constexpr(1)
RADEMACHER = tl.constexpr(2)

# Kernels see numbers of a module one by one, not in tuples.
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (tl.constexpr(c) for c in spec.LN)
_LN2_HIGH, _LN2_LOW = tl.constexpr(spec.LN2_HIGH), tl.constexpr(spec.LN2_LOW)
_S0, _S1, _S2 = (tl.constexpr(c) for c in spec.SIN)
_C0, _C1, _C2 = (tl.constexpr(c) for c in spec.COS)
_SQRT_HALF_BITS = tl.constexpr(spec.SQRT_HALF_BITS)
_HALF_PI, _SQRT_HALF = tl.constexpr(spec.HALF_PI), tl.constexpr(spec.SQRT_HALF)
_TINY = tl.constexpr(spec.TINY)


@triton.jit
def philox(first, COUNT: tl.constexpr, k0, k1, pid, stream):
    """Four words, uint32 (COUNT,), of the counters from `first` (int64, a multiple of COUNT) on."""
    low = tl.arange(0, COUNT).to(tl.uint32)
    zero = low ^ low
    c0 = low + first.to(tl.uint32)
    c1 = zero + (first >> 32).to(tl.uint32)
    c2 = zero + pid.to(tl.uint32)
    c3 = zero + stream.to(tl.uint32)
    m0 = zero + 0xD2511F53
    m1 = zero + 0xCD9E8D57
    for _ in tl.static_range(10):
        h0 = tl.umulhi(c0, m0)
        h1 = tl.umulhi(c2, m1)
        l0 = c0 * m0
        l1 = c2 * m1
        c0 = h1 ^ c1 ^ k0
        c2 = h0 ^ c3 ^ k1
        c1 = l1
        c3 = l0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words(first, COUNT: tl.constexpr, k0, k1, pid, stream):
    """Words in natural order, uint32 (COUNT,), from word `first` (a multiple of COUNT) on."""
    w0, w1, w2, w3 = philox(first // 4, COUNT // 4, k0, k1, pid, stream)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [COUNT])


@triton.jit
def elements(first, BLOCK: tl.constexpr, k0, k1, pid, stream, levels, KIND: tl.constexpr):
    """z, float32 (BLOCK,), from element `first` (a multiple of BLOCK) on."""
    if KIND == GAUSS:
        w0, w1, w2, w3 = philox(first // 4, BLOCK // 4, k0, k1, pid, stream)
        radius = _radius(tl.join(w0, w2))
        cosine, sine = _polar(tl.join(w1, w3))
        z = tl.reshape(tl.join(radius * cosine, radius * sine), [BLOCK])
    elif KIND == GAUSS8:
        word = words(first // 4, BLOCK // 4, k0, k1, pid, stream)
        byte = (word[:, None] >> (8 * tl.arange(0, 4)).to(tl.uint32)[None, :]) & 255
        z = tl.load(levels + tl.reshape(byte, [BLOCK]).to(tl.int32))
    else:
        word = words(first // 32, BLOCK // 32, k0, k1, pid, stream)
        bit = word[:, None] << (31 - tl.arange(0, 32)).to(tl.uint32)[None, :]
        bit = (bit & 0x80000000) | 0x3F800000
        z = tl.reshape(bit, [BLOCK]).to(tl.float32, bitcast=True)
    return z


@triton.jit
def _radius(word):
    """sqrt(-2 ln u), u = (word >> 9 + 1/2) 2**-23; the root is the correctly rounded one."""
    u = ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * _TINY
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    y = m * _L0 + _L1
    y = y * m + _L2
    y = y * m + _L3
    y = y * m + _L4
    y = y * m + _L5
    y = y * m + _L6
    y = y * m + _L7
    y = y * m + _L8
    square = m * m
    e = exponent.to(tl.float32)
    y = y * m * square
    y = y + e * _LN2_LOW
    y = y - square * 0.5
    y = y + m
    y = y + e * _LN2_HIGH
    return tl.sqrt_rn(y * -2.0)


@triton.jit
def _polar(word):
    """Cosine and sine of a uniform angle: quadrant in the top two bits, 23 bits within it."""
    angle = ((word >> 7) & 0x7FFFFF).to(tl.int32).to(tl.float32) + 0.5
    angle = (angle * _TINY - 0.5) * _HALF_PI
    square = angle * angle
    sine = square * _S0 + _S1
    sine = sine * square + _S2
    sine = sine * square * angle + angle
    cosine = square * _C0 + _C1
    cosine = cosine * square + _C2
    cosine = cosine * square * square - square * 0.5 + 1.0
    turned_cos = ((cosine - sine) * _SQRT_HALF).to(tl.uint32, bitcast=True)
    turned_sin = ((cosine + sine) * _SQRT_HALF).to(tl.uint32, bitcast=True)
    odd = (word & (1 << 30)) != 0
    sign = word & 0x80000000
    s = tl.where(odd, turned_cos, turned_sin) ^ sign
    c = tl.where(odd, turned_sin ^ 0x80000000, turned_cos) ^ sign
    return c.to(tl.float32, bitcast=True), s.to(tl.float32, bitcast=True)
