"""The sweeps as Triton kernels: one tile of one parameter a program, one grid for all parameters.

Whatever may differ from call to call (seeds, coefficients, masks, numbers of terms) is read from
device memory and decided by branches that a whole program takes, so that a kernel is compiled once
for a noise and a dtype, and a captured launch serves every step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zolab.optim.triton.noise import elements, words
from zolab.optim.triton.storage import FLOAT32, nearest, read, stochastic, write

# A row of the table of parameters: int64 each.
WEIGHT = tl.constexpr(0)  # address of the first element swept
SIZE = tl.constexpr(1)  # elements
OFFSET = tl.constexpr(2)  # index of that element within its parameter
PID = tl.constexpr(3)
MASK = tl.constexpr(4)  # address, 0: none is held
FORM = tl.constexpr(5)  # 1: a byte an element, 2: a bit
LIMIT = tl.constexpr(6)  # 1: |w| <= threshold moves, 2: >=, 0: the mask is as it is held
THRESHOLD = tl.constexpr(7)  # bits of a float32
SPLIT = tl.constexpr(8)  # terms before the limit is looked at
TERMS = tl.constexpr(9)  # its first term
COUNT = tl.constexpr(10)  # how many it has
PROGRAM = tl.constexpr(11)  # its first program
PLUS = tl.constexpr(12)  # addresses of a pair's results
MINUS = tl.constexpr(13)
FIRST = tl.constexpr(14)  # addresses of the moments of a step, 0: none is kept
SECOND = tl.constexpr(15)
FIELDS = tl.constexpr(16)
# A term: int32 each.
A = tl.constexpr(0)  # bits of a float32
SCALE = tl.constexpr(1)  # bits of a float32
KEY = tl.constexpr(2)  # two words
ROUNDED = tl.constexpr(4)  # stochastically
STEP = tl.constexpr(5)  # where its step begins, counted from the first term; 0: it has none
TERM = tl.constexpr(6)
# Streams of Philox.
Z = tl.constexpr(0)
ROUNDING = tl.constexpr(1)


@triton.jit
def _row_of(table, rows, program):
    """The row whose programs this one is among: the last that does not begin after it."""
    low = rows - rows
    high = rows
    while high - low > 1:
        middle = (low + high) // 2
        begins_later = tl.load(table + middle * FIELDS + PROGRAM) > program
        low = tl.where(begins_later, low, middle)
        high = tl.where(begins_later, middle, high)
    return table + low * FIELDS


@triton.jit
def _tile(row, program, BLOCK: tl.constexpr):
    """First element of this program's tile, where it is in memory, and which lanes are its own."""
    offset = tl.load(row + OFFSET)
    first = (offset // BLOCK + program - tl.load(row + PROGRAM)) * BLOCK
    begin = first - offset
    low = tl.maximum(-begin, 0).to(tl.int32)
    high = tl.minimum(tl.load(row + SIZE) - begin, BLOCK).to(tl.int32)
    return first, begin, low, high


@triton.jit
def _pointer(address, begin, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE == FLOAT32:
        at = (address + begin * 4).to(tl.pointer_type(tl.float32))
    else:
        at = (address + begin * 2).to(tl.pointer_type(tl.int16))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def _held(row, begin, lane, low, high):
    """The mask of a tile as it is held, int32 0 or 1; all 1 where none is."""
    address = tl.load(row + MASK)
    inside = (lane >= low) & (lane < high)
    live = inside.to(tl.int32)
    if address != 0:
        if tl.load(row + FORM) == 1:
            at = (address + begin).to(tl.pointer_type(tl.uint8)) + lane
            live = (tl.load(at, mask=inside, other=0) != 0).to(tl.int32)
        else:
            at = (address + begin // 8).to(tl.pointer_type(tl.uint8)) + lane // 8
            byte = tl.load(at, mask=inside, other=0).to(tl.int32)
            live = (byte >> (lane % 8)) & 1
    return live


@triton.jit
def _decided(row, w, lane, low, high):
    """The mask of a tile from its weights."""
    edge = tl.load(row + THRESHOLD).to(tl.int32).to(tl.float32, bitcast=True)
    size = tl.abs(w)
    below = tl.load(row + LIMIT) == 1
    within = tl.where(below, size, edge) <= tl.where(below, edge, size)
    return (within & (lane >= low) & (lane < high)).to(tl.int32)


@triton.jit
def _hold(row, begin, lane, low, high, live, BLOCK: tl.constexpr):
    """Write a tile's mask back as it is held."""
    address = tl.load(row + MASK)
    if address != 0:
        if tl.load(row + FORM) == 1:
            bytes_at = (address + begin).to(tl.pointer_type(tl.uint8)) + lane
            tl.store(bytes_at, live.to(tl.uint8), mask=(lane >= low) & (lane < high))
        else:
            eight = tl.reshape(live, [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
            byte = tl.arange(0, BLOCK // 8)
            bits_at = (address + begin // 8).to(tl.pointer_type(tl.uint8)) + byte
            inside = (byte * 8 + 8 > low) & (byte * 8 < high)
            tl.store(bits_at, tl.sum(eight, axis=1).to(tl.uint8), mask=inside)


@triton.jit
def _written(w, value, live, first, BLOCK: tl.constexpr, k0, k1, pid, rounded, DTYPE: tl.constexpr):
    """`value` rounded as a term asks for, where the mask allows; `w` elsewhere."""
    if DTYPE != FLOAT32:
        if rounded != 0:
            word = words(first, BLOCK, k0, k1, pid, tl.full((), ROUNDING, tl.int64))
            value = stochastic(value, word, DTYPE)
        value = nearest(value, DTYPE)
    return tl.where(live != 0, value, w)


@triton.jit
def _direction(
    z, made, last0, last1, k0, k1, first, pid, levels, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """z of a key, made unless it is that of the last one."""
    if (made == 0) | (k0 != last0) | (k1 != last1):
        z = elements(first, BLOCK, k0, k1, pid, tl.full((), Z, tl.int64), levels, KIND)
    return z


# A step: int32 each, its looks behind it, the probes of a look behind that.
LOOKS = tl.constexpr(0)  # how many
HOW = tl.constexpr(1)  # the move is m: 0, divided: 1, divided by a root: 2, its sign: 3
FLOOR = tl.constexpr(2)  # bits of a float32, as all that follow
TIMES = tl.constexpr(3)
ADDED = tl.constexpr(4)
STEP_FIELDS = tl.constexpr(5)
PROBES = tl.constexpr(0)  # how many
INTO_FIRST = tl.constexpr(1)
INTO_SECOND = tl.constexpr(2)
DECAYS = tl.constexpr(3)  # decay and share of m, then those of v
LOOK_FIELDS = tl.constexpr(7)
PROBE_FIELDS = tl.constexpr(3)  # c and two words of key


@triton.jit
def moved(
    row, step, live, z, made, last0, last1, first, begin, lane, low, high, pid, levels,
    KIND: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The move of a tile after its moments took in the estimates, and the z that was made last."""
    m_address = tl.load(row + FIRST)
    v_address = tl.load(row + SECOND)
    m_at = _pointer(m_address, begin, FLOAT32, ALIGNED)
    v_at = _pointer(v_address, begin, FLOAT32, ALIGNED)
    m = tl.zeros([BLOCK], tl.float32)
    v = tl.zeros([BLOCK], tl.float32)
    if m_address != 0:
        m = read(m_at, lane, low, high, FLOAT32)
    if v_address != 0:
        v = read(v_at, lane, low, high, FLOAT32)
    look = step + STEP_FIELDS
    looks = tl.load(step + LOOKS)
    number = looks - looks
    while number < looks:
        probes = tl.load(look + PROBES)
        g = tl.zeros([BLOCK], tl.float32)
        probe = probes - probes
        while probe < probes:
            at = look + LOOK_FIELDS + probe * PROBE_FIELDS
            c = tl.load(at).to(tl.float32, bitcast=True)
            k0 = tl.load(at + 1).to(tl.uint32, bitcast=True)
            k1 = tl.load(at + 2).to(tl.uint32, bitcast=True)
            z = _direction(z, made, last0, last1, k0, k1, first, pid, levels, KIND, BLOCK)
            last0 = k0
            last1 = k1
            made = tl.full((), 1, tl.int32)
            g = tl.where(probe == 0, z * c, z * c + g)
            probe += 1
        g = tl.where(live != 0, g, 0.0)
        if tl.load(look + INTO_SECOND) != 0:
            decay = tl.load(look + DECAYS + 2).to(tl.float32, bitcast=True)
            share = tl.load(look + DECAYS + 3).to(tl.float32, bitcast=True)
            v = v * decay + g * g * share
        if tl.load(look + INTO_FIRST) != 0:
            decay = tl.load(look + DECAYS).to(tl.float32, bitcast=True)
            share = tl.load(look + DECAYS + 1).to(tl.float32, bitcast=True)
            m = m * decay + g * share
        look += LOOK_FIELDS + probes * PROBE_FIELDS
        number += 1
    if m_address != 0:
        write(m_at, lane, low, high, m, FLOAT32)
    if v_address != 0:
        write(v_at, lane, low, high, v, FLOAT32)
    how = tl.load(step + HOW)
    if how == 3:
        m = tl.where(m > 0.0, 1.0, tl.where(m < 0.0, -1.0, 0.0))
    elif how != 0:
        edge = tl.load(step + FLOOR).to(tl.float32, bitcast=True)
        d = tl.where(v < edge, edge, v)
        if how == 2:
            d = tl.sqrt_rn(d)
        times = tl.load(step + TIMES).to(tl.float32, bitcast=True)
        plus = tl.load(step + ADDED).to(tl.float32, bitcast=True)
        m = tl.div_rn(m, d * times + plus)
    return m, z, made, last0, last1


@triton.jit(do_not_specialize=["rows"])
def sweep(
    table, rows, terms, levels,
    KIND: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    STEPS: tl.constexpr = False,
):  # fmt: skip
    """Apply each row's terms to its weights, in order, in place.

    Compiled apart for sweeps without a step, which need fewer registers.
    """
    program = tl.program_id(0).to(tl.int64)
    row = _row_of(table, rows, program)
    first, begin, low, high = _tile(row, program, BLOCK)
    lane = tl.arange(0, BLOCK)
    at = _pointer(tl.load(row + WEIGHT), begin, DTYPE, ALIGNED)
    pid = tl.load(row + PID)
    limit = tl.load(row + LIMIT)
    split = tl.load(row + SPLIT).to(tl.int32)
    count = tl.load(row + COUNT).to(tl.int32)
    w = read(at, lane, low, high, DTYPE)
    live = _held(row, begin, lane, low, high)
    z = w
    last0 = tl.full((), 0, tl.uint32)
    last1 = tl.full((), 0, tl.uint32)
    made = tl.full((), 0, tl.int32)
    number = tl.full((), 0, tl.int32)
    while number <= count:
        if (limit != 0) & (number == split):
            live = _decided(row, w, lane, low, high)
            _hold(row, begin, lane, low, high, live, BLOCK)
        if number < count:
            term = terms + (tl.load(row + TERMS) + number) * TERM
            a = tl.load(term + A).to(tl.float32, bitcast=True)
            scale = tl.load(term + SCALE).to(tl.float32, bitcast=True)
            k0 = tl.load(term + KEY).to(tl.uint32, bitcast=True)
            k1 = tl.load(term + KEY + 1).to(tl.uint32, bitcast=True)
            rounded = tl.load(term + ROUNDED)
            by_step = tl.full((), 0, tl.int32)
            move = z
            if STEPS:
                by_step = tl.load(term + STEP)
                if by_step != 0:
                    move, z, made, last0, last1 = moved(
                        row, terms + by_step, live, z, made, last0, last1,
                        first, begin, lane, low, high, pid, levels, KIND, ALIGNED, BLOCK,
                    )  # fmt: skip
            if scale != 1.0:
                w = _written(w, w * scale, live, first, BLOCK, k0, k1, pid, rounded, DTYPE)
            if a != 0.0:
                if by_step == 0:
                    z = _direction(z, made, last0, last1, k0, k1, first, pid, levels, KIND, BLOCK)
                    last0 = k0
                    last1 = k1
                    made = tl.full((), 1, tl.int32)
                    move = z
                w = _written(w, move * a + w, live, first, BLOCK, k0, k1, pid, rounded, DTYPE)
        number += 1
    write(at, lane, low, high, w, DTYPE)


@triton.jit(do_not_specialize=["rows"])
def pair(
    table, rows, terms, levels,
    KIND: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both perturbed copies of each row's weights; the coefficient of its one term is eps."""
    program = tl.program_id(0).to(tl.int64)
    row = _row_of(table, rows, program)
    first, begin, low, high = _tile(row, program, BLOCK)
    lane = tl.arange(0, BLOCK)
    term = terms + tl.load(row + TERMS) * TERM
    eps = tl.load(term + A).to(tl.float32, bitcast=True)
    k0 = tl.load(term + KEY).to(tl.uint32, bitcast=True)
    k1 = tl.load(term + KEY + 1).to(tl.uint32, bitcast=True)
    w = read(_pointer(tl.load(row + WEIGHT), begin, DTYPE, ALIGNED), lane, low, high, DTYPE)
    live = _held(row, begin, lane, low, high)
    if tl.load(row + LIMIT) != 0:
        live = _decided(row, w, lane, low, high)
    pid = tl.load(row + PID)
    z = elements(first, BLOCK, k0, k1, pid, tl.full((), Z, tl.int64), levels, KIND)
    # Where the mask is off a zero is added, which turns -0 into +0 in `plus`.
    step = tl.where(live != 0, z * eps, 0.0)
    plus = _pointer(tl.load(row + PLUS), begin, DTYPE, ALIGNED)
    minus = _pointer(tl.load(row + MINUS), begin, DTYPE, ALIGNED)
    write(plus, lane, low, high, nearest(w + step, DTYPE), DTYPE)
    write(minus, lane, low, high, nearest(w - step, DTYPE), DTYPE)


# Fields of what `spread` is told: int64 each.
START_STRIDE = tl.constexpr(0)  # index[i] * this is the first element of line i
WIDTH = tl.constexpr(1)
TILES = tl.constexpr(2)  # programs a line
SPREAD_PID = tl.constexpr(3)
STREAM = tl.constexpr(4)
SPREAD_KEY = tl.constexpr(5)  # 64 bits


@triton.jit
def spread(out, index, told, levels, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """out[i, :] = z from element index[i] * stride on, of any stream."""
    program = tl.program_id(0).to(tl.int64)
    tiles = tl.load(told + TILES)
    width = tl.load(told + WIDTH)
    line = program // tiles
    start = tl.load(index + line) * tl.load(told + START_STRIDE)
    first = (start // BLOCK + program % tiles) * BLOCK
    key = tl.load(told + SPREAD_KEY)
    k0 = key.to(tl.uint32)
    k1 = (key >> 32).to(tl.uint32)
    pid = tl.load(told + SPREAD_PID)
    z = elements(first, BLOCK, k0, k1, pid, tl.load(told + STREAM), levels, KIND)
    lane = tl.arange(0, BLOCK)
    begin = first - start
    inside = (lane >= -begin) & (lane < width - begin)
    tl.store(out + line * width + begin + lane, z, mask=inside)
