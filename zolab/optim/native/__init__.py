"""Optional native backend: the sweeps over CPU weights in C, bit for bit what plain torch does.

Built on first use with the compiler found on this machine, and kept in a cache. Whatever goes wrong
(no compiler, nowhere to write, a CPU that refuses) costs speed and one warning, never a run.
`ZOLAB_NATIVE=0` turns it off.

Two things are outside the contract: the bits of a NaN beyond its being one, and, on float32
subnormals, threads other than the caller's under `torch.set_flush_denormal(True)`.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from ctypes import CDLL, byref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.moments import has_state
from zolab.optim.native.build import BuildError, library
from zolab.optim.native.pack import DTYPES, MASK64, address, packed
from zolab.optim.native.probe import Mask as _CMask
from zolab.optim.native.probe import open_library

if TYPE_CHECKING:
    from zolab.optim.backend import Limit, Term
    from zolab.optim.bits import Places
    from zolab.optim.moments import Step

__all__ = ["available", "fill", "handles", "pair", "rows", "sweep"]

#: Name in the benchmark and in `zolab doctor`.
NAME = "cpp"
#: Noises whose z is read where it is kept; the others are made in less time than memory gives them.
READS_KEPT = frozenset({"gauss"})
#: Masks may be held as the places of what moves.
READS_PLACES = True

#: Weights whose updates may be steps with moments.
STEPS = frozenset({torch.float32, torch.bfloat16, torch.float16})

_LOG = logging.getLogger(__name__)
_KINDS = {"gauss": 0, "gauss8": 1, "rademacher": 2}

#: Below this many elements a second thread costs more than it saves.
PARALLEL_FROM = 1 << 18
#: Threads get whole tiles of kernels.c; a cut elsewhere would make the noise of a tile twice.
_TILE = 2048


class _Loaded:
    """The library and what every call needs."""

    def __init__(self, lib: CDLL, table: Tensor) -> None:
        self.lib = lib
        self.table = table  # keeps the memory that `levels` points to
        self.levels = table.data_ptr()


_lock = threading.Lock()
_loaded: _Loaded | None = None
_failure: str | None = None  # why there is none; set once
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def available() -> bool:
    """Whether the kernels can be used; the first call builds them, or warns why it could not."""
    if os.environ.get("ZOLAB_NATIVE") == "0":
        return False
    if _loaded is None and _failure is None:
        _load()
    return _loaded is not None


def handles(kind: str | None, tensor: Tensor) -> bool:
    """Whether the kernels can work on this tensor: a noise they know, contiguous, CPU, a dtype of
    weights, and no subclass that intercepts operations. Builds on the first call that asks, and
    says once of each device and dtype that plain torch is used for it."""
    if kind not in _KINDS or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    known = tensor.device.type == "cpu" and tensor.dtype in DTYPES
    if not known:
        _tell_once(tensor.device.type, tensor.dtype)
    return known and tensor.is_contiguous() and available()


def takes_steps(kind: str, tensor: Tensor) -> bool:
    """Whether sweeps over a tensor that the kernels handle may have steps with moments."""
    if tensor.dtype not in STEPS:
        _tell_of_steps_once(tensor.dtype)
    return tensor.dtype in STEPS


@functools.cache
def _tell_once(device: str, dtype: torch.dtype) -> None:
    _LOG.warning("native kernels are for CPU weights: %s on %s goes by plain torch", dtype, device)


@functools.cache
def _tell_of_steps_once(dtype: torch.dtype) -> None:
    _LOG.warning("native kernels: updates of %s weights by moments go by plain torch", dtype)


def fill(kind: str, out: Tensor, seed: int, pid: int, offset: int = 0, stream: int = 0) -> None:
    """`Noise.fill`: write elements `offset` ... of z into `out`.

    Args:
        kind: "gauss", "gauss8" or "rademacher".
        out: float32 (n,), contiguous, CPU.
        seed: 64-bit Philox key.
        pid: parameter id below 2**32.
        offset: index of the first element within its parameter, >= 0.
        stream: last word of the counter.

    Raises:
        ValueError: `out` is something else.
        RuntimeError: the kernels are not available.
    """
    on = _library()
    at = address("out", out, torch.float32)
    code, seed = _KINDS[kind], seed & MASK64

    def run(begin: int, end: int) -> None:
        on.lib.zo_fill(code, at, begin, end, offset, seed, pid, stream, on.levels)

    _split(out.numel(), run)


def rows(kind: str, index: Tensor, width: int, seed: int, pid: int, stream: int = 0) -> Tensor:
    """`Noise.rows`: rows `index` (int64, CPU) of a (rows, width) parameter's z, float32."""
    on = _library()
    index = index.contiguous()
    out = torch.empty(len(index), width)
    to, at = out.data_ptr(), address("index", index, torch.int64)
    code, seed = _KINDS[kind], seed & MASK64

    def run(begin: int, end: int) -> None:
        on.lib.zo_rows(code, to, at, begin, end, width, seed, pid, stream, on.levels)

    _split(len(index), run, unit=1, weight=width)
    return out


def sweep(
    kind: str,
    weight: Tensor,
    pid: int,
    terms: Sequence[Term | Step],
    mask: Tensor | Places | None = None,
    *,
    limit: Limit | None = None,
    split: int = 0,
    offset: int = 0,
    kept: Mapping[int, Tensor] | None = None,
) -> None:
    """`backend.sweep_` in one pass over memory, z made on the fly.

    Args:
        kind: "gauss", "gauss8" or "rademacher".
        weight: any shape, contiguous, CPU; float32, float64, bfloat16 or float16; changed in place.
        pid: parameter id below 2**32.
        terms: operations, applied in order, each rounded to the dtype of `weight`; steps for the
            dtypes of `STEPS`, with moments of as many elements as `weight`.
        mask: bool, as many elements, or bits as `bits.pack_bits` makes them, or places of the
            whole parameter; False elements do not change by a single bit.
        limit: decide the mask anew from the weights, after the first `split` terms; the later
            terms go by it, and `mask`, if there is one, holds it afterwards.
        split: see `limit`.
        offset: index of the first element of `weight` within its parameter.
        kept: z of some seeds if it is at hand, float32, as many elements as `weight`; read instead
            of being made.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    on = _library()
    at = address("weight", weight)
    if has_state(terms) and weight.dtype not in STEPS:
        raise ValueError(f"weight: {weight.dtype}: steps with moments are for 32 and 16 bits")
    chosen = _mask(mask, weight, limit, split, offset)
    told, count = packed(terms, weight.numel(), kept), len(terms)
    code, dtype = _KINDS[kind], DTYPES[weight.dtype]

    def run(begin: int, end: int) -> None:
        on.lib.zo_sweep(
            code, dtype, at, byref(chosen), begin, end, offset, pid, told, count, on.levels
        )

    _split(weight.numel(), run)


def pair(
    kind: str,
    weight: Tensor,
    pid: int,
    seed: int,
    eps: float,
    mask: Tensor | Places | Limit | None,
    out_plus: Tensor,
    out_minus: Tensor,
    *,
    offset: int = 0,
    kept: Tensor | None = None,
) -> None:
    """`backend.pair` in one pass over memory: `out_plus` = W + eps z, `out_minus` = W - eps z.

    Args:
        kind, weight, pid, offset: as for `sweep`; `weight` is not modified.
        mask: bool, as many elements, or bits, or places, or a limit on the weights' own size.
        seed: 64-bit seed of the direction.
        eps: perturbation scale.
        out_plus, out_minus: contiguous, dtype and number of elements of `weight`, other memory.
        kept: z if it is at hand, float32, as many elements as `weight`.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """
    from zolab.optim.backend import Limit

    on = _library()
    size = weight.numel()
    at = address("weight", weight)
    limit = mask if isinstance(mask, Limit) else None
    chosen = _mask(None if limit else mask, weight, limit, offset=offset)
    plus = address("out_plus", out_plus, weight.dtype, size)
    minus = address("out_minus", out_minus, weight.dtype, size)
    if size and len({at, plus, minus}) < 3:
        raise ValueError("weight, out_plus and out_minus must not share memory")
    z = None if kept is None else address("kept", kept, torch.float32, size)
    code, dtype, seed = _KINDS[kind], DTYPES[weight.dtype], seed & MASK64

    def run(begin: int, end: int) -> None:
        on.lib.zo_pair(
            code,
            dtype,
            at,
            byref(chosen),
            begin,
            end,
            offset,
            pid,
            seed,
            z,
            eps,
            plus,
            minus,
            on.levels,
        )

    _split(size, run)


def _library() -> _Loaded:
    if not available() or _loaded is None:
        raise RuntimeError(f"native kernels are not available: {_failure or 'ZOLAB_NATIVE=0'}")
    return _loaded


def _mask(
    mask: Tensor | Places | None,
    weight: Tensor,
    limit: Limit | None,
    split: int = 0,
    offset: int = 0,
) -> _CMask:
    """A mask as C takes it: held as bytes, bits or places, or decided from the weights, or both."""
    at, starts, form, size = None, None, 0, weight.numel()
    if mask is not None and not isinstance(mask, Tensor):
        if limit is not None or offset + size > mask.size:
            raise ValueError(f"mask: expected places of {mask.size} elements and no limit")
        form = 3
        at = address("mask", mask.places, torch.int16)
        starts = address("mask", mask.starts, torch.int32, -(-mask.size // _TILE) + 1)
    elif mask is not None:
        form = 2 if mask.dtype == torch.uint8 else 1
        if form == 2 and offset % 8:
            raise ValueError(f"mask: bits begin with a byte, not at element {offset}")
        dtype, length = (torch.uint8, -(-size // 8)) if form == 2 else (torch.bool, size)
        at = address("mask", mask, dtype, length)
    if limit is None:
        return _CMask(at, starts, form, 0, 0.0, 0)
    # torch compares in the dtype of the weights.
    threshold = float(torch.tensor(limit.threshold, dtype=weight.dtype))
    return _CMask(at, starts, form, 1 if limit.below else 2, threshold, split)


def _split(count: int, run: Callable[[int, int], None], unit: int = _TILE, weight: int = 1) -> None:
    """Run over [0, count) in as many threads as torch uses; C releases the interpreter lock.

    Args:
        unit: pieces begin at multiples of this.
        weight: elements per item.
    """
    threads = min(torch.get_num_threads(), count // unit)
    if threads < 2 or count * weight < PARALLEL_FROM:
        if count:
            run(0, count)
        return
    cuts = [count * i // threads // unit * unit for i in range(threads)] + [count]
    pool = _workers(threads - 1)
    others = [pool.submit(run, cuts[i], cuts[i + 1]) for i in range(1, threads)]
    try:
        run(cuts[0], cuts[1])
    finally:
        wait(others)  # even when interrupted: they write to the caller's memory
    for other in others:
        other.result()


def _workers(count: int) -> ThreadPoolExecutor:
    """The one pool of this process: plain threads, so that no second OpenMP runtime comes in."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            # A smaller pool is not shut down: another thread may be about to use it.
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="zolab-native"), count
        return _pool


def _load() -> None:
    global _loaded, _failure
    with _lock:
        if _loaded is not None or _failure is not None:
            return
        try:
            _loaded = _open()
        except Exception as error:  # whatever it is, plain torch does the same work
            _failure = f"{error}" or type(error).__name__
            _LOG.warning("native kernels are off, plain torch is used instead: %s", _failure)


def _open() -> _Loaded:
    """Load the library and compare a few elements of every noise with the specification."""
    # Here, because noise.py may in turn ask this module for its work.
    from zolab.optim.noise import NOISES, gauss8_table

    path = library()
    on = _Loaded(open_library(str(path)), gauss8_table())
    seed, pid, count = 0x9E3779B97F4A7C15, 7, 1024
    for kind, code in _KINDS.items():
        noise = NOISES[kind]()
        made = torch.empty(count)
        on.lib.zo_fill(code, made.data_ptr(), 0, count, 0, seed, pid, 0, on.levels)
        if not torch.equal(
            made, noise.blocks(torch.arange(count // noise.per_block), seed, pid).view(-1)
        ):
            raise BuildError(f"{path} does not make the bits of {kind}")
    return on


def _forget() -> None:
    """Back to the state before the first use: the next call looks for the library again."""
    global _loaded, _failure
    with _lock:
        _loaded = _failure = None


def _drop_pool() -> None:
    """In a forked child: the pool's threads stayed in the parent, and so may have the lock."""
    global _pool, _pool_size, _lock
    _lock = threading.Lock()
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pool)
