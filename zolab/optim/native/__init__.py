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
from collections.abc import Mapping, Sequence
from ctypes import pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.moments import has_state
from zolab.optim.native import jobs, probe
from zolab.optim.native.build import BuildError, library
from zolab.optim.native.jobs import TILE, Library, settle, together
from zolab.optim.native.pack import DTYPES, MASK64, address, packed

if TYPE_CHECKING:
    from zolab.optim.backend import Limit, Term
    from zolab.optim.bits import Places
    from zolab.optim.moments import Step

__all__ = ["available", "fill", "handles", "loaded", "pair", "rows", "settle", "sweep", "together"]

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

#: Elements of a mask held as bytes beyond which it is not kept waiting.
_LARGE_MASK = 1 << 20


_lock = threading.Lock()
_loaded: Library | None = None
_failure: str | None = None  # why there is none; set once


def available() -> bool:
    """Whether the kernels can be used; the first call builds them, or warns why it could not."""
    if os.environ.get("ZOLAB_NATIVE") == "0":
        return False
    if _loaded is None and _failure is None:
        _load()
    return _loaded is not None


def loaded() -> Library | None:
    """The kernels in use, None before the first use: what was told to them is for these only."""
    return _loaded


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
    asked = probe.Fill(_KINDS[kind], pid, stream, at, offset, seed & MASK64, on.levels)
    on.run([on.lot("zo_fill", asked, out.numel())])


def rows(kind: str, index: Tensor, width: int, seed: int, pid: int, stream: int = 0) -> Tensor:
    """`Noise.rows`: rows `index` (int64, CPU) of a (rows, width) parameter's z, float32."""
    on = _library()
    index = index.contiguous()
    out = torch.empty(len(index), width)
    to, at = out.data_ptr(), address("index", index, torch.int64)
    row = probe.Fill(_KINDS[kind], pid, stream, to, 0, seed & MASK64, on.levels)
    asked = probe.Rows(row, at, width)
    on.run([on.lot("zo_rows", asked, len(index), unit=1, weight=width)])
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
    chosen = pointer(_mask(mask, weight, limit, split, offset))
    told, code = packed(terms, weight.numel(), kept), (_KINDS[kind], DTYPES[weight.dtype])
    asked = probe.Sweep(*code, len(terms), pid, at, chosen, offset, told, on.levels)
    jobs.sweep(on, at, on.lot("zo_sweep", asked, weight.numel()), (asked, weight, mask, kept))
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() > _LARGE_MASK:
        settle()  # it was spread out for this sweep alone: do not let many of them pile up


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
    on = _library()
    size = weight.numel()
    at = address("weight", weight)
    chosen = pointer(_pair_mask(mask, weight, offset))
    plus = address("out_plus", out_plus, weight.dtype, size)
    minus = address("out_minus", out_minus, weight.dtype, size)
    if size and len({at, plus, minus}) < 3:
        raise ValueError("weight, out_plus and out_minus must not share memory")
    z = None if kept is None else address("kept", kept, torch.float32, size)
    code, seed = (_KINDS[kind], DTYPES[weight.dtype]), seed & MASK64
    asked = probe.Pair(*code, pid, at, chosen, offset, seed, z, eps, plus, minus, on.levels)
    on.run([on.lot("zo_pair", asked, size)])


def _library() -> Library:
    if not available() or _loaded is None:
        raise RuntimeError(f"native kernels are not available: {_failure or 'ZOLAB_NATIVE=0'}")
    return _loaded


def _pair_mask(mask: Tensor | Places | Limit | None, weight: Tensor, offset: int) -> probe.Mask:
    """The mask of a pair as C takes it."""
    from zolab.optim.backend import Limit

    limit = mask if isinstance(mask, Limit) else None
    return _mask(None if limit else mask, weight, limit, offset=offset)


def _mask(
    mask: Tensor | Places | None,
    weight: Tensor,
    limit: Limit | None,
    split: int = 0,
    offset: int = 0,
) -> probe.Mask:
    """A mask as C takes it: held as bytes, bits or places, or decided from the weights, or both."""
    at, starts, form, size = None, None, 0, weight.numel()
    if mask is not None and not isinstance(mask, Tensor):
        if limit is not None or offset + size > mask.size:
            raise ValueError(f"mask: expected places of {mask.size} elements and no limit")
        form = 3
        at = address("mask", mask.places, torch.int16)
        starts = address("mask", mask.starts, torch.int32, -(-mask.size // TILE) + 1)
    elif mask is not None:
        form = 2 if mask.dtype == torch.uint8 else 1
        if form == 2 and offset % 8:
            raise ValueError(f"mask: bits begin with a byte, not at element {offset}")
        dtype, length = (torch.uint8, -(-size // 8)) if form == 2 else (torch.bool, size)
        at = address("mask", mask, dtype, length)
    if limit is None:
        return probe.Mask(at, starts, form, 0, 0.0, 0)
    # torch compares in the dtype of the weights.
    threshold = float(torch.tensor(limit.threshold, dtype=weight.dtype))
    return probe.Mask(at, starts, form, 1 if limit.below else 2, threshold, split)


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


def _open() -> Library:
    """Load the library and compare a few elements of every noise with the specification."""
    # Here, because noise.py may in turn ask this module for its work.
    from zolab.optim.noise import NOISES, gauss8_table

    path = library()
    on = Library(probe.open_library(str(path)), gauss8_table())
    seed, pid, count = 0x9E3779B97F4A7C15, 7, 1024
    for kind, code in _KINDS.items():
        noise = NOISES[kind]()
        made = torch.empty(count)
        asked = probe.Fill(code, pid, 0, made.data_ptr(), 0, seed, on.levels)
        on.run([on.lot("zo_fill", asked, count)])
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


def _in_child() -> None:
    """In a forked child: OpenMP's threads stayed in the parent, and it would wait for them."""
    global _lock
    _lock = threading.Lock()
    if _loaded is not None:
        _loaded.leave_team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
