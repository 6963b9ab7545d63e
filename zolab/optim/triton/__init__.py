"""Optional backend for CUDA: the sweeps over weights in Triton, bit for bit what plain torch does.

Used where CUDA weights meet an installed Triton. Before the first sweep of a noise and a dtype its
kernels are compiled and compared with the specification on a few elements; whatever goes wrong
costs speed and one warning, never a run. `ZOLAB_TRITON=0` turns it off; under `TRITON_INTERPRET=1`,
`ZOLAB_TRITON=1` takes CPU weights too, which is how it is tested without a GPU.

Outside the contract: the bits of a NaN beyond its being one.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.moments import moments_of

if TYPE_CHECKING:
    from zolab.optim.backend import Limit, Term
    from zolab.optim.moments import Step
    from zolab.optim.triton.launch import Job

__all__ = ["fill", "handles", "pair", "rows", "settle", "sweep", "sweep_many", "together"]

#: Name in the benchmark and in `zolab doctor`.
NAME = "triton"
#: Noises whose z is read where it is kept: making it costs no more than fetching it.
READS_KEPT: frozenset[str] = frozenset()
#: Masks are held as bytes or bits.
READS_PLACES = False

_LOG = logging.getLogger(__name__)
_KINDS = {"gauss": 0, "gauss8": 1, "rademacher": 2}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Elements of a mask held as bytes beyond which it is not kept waiting.
_LARGE_MASK = 1 << 20


class _Waiting(threading.local):
    """Sweeps of a thread that have not been launched; None outside `together`."""

    jobs: dict[tuple[str, int], Job] | None = None


_waiting = _Waiting()


def takes(device: torch.device) -> bool:
    """Whether weights of a device are meant for these kernels, and Triton is there."""
    chosen = os.environ.get("ZOLAB_TRITON")
    if chosen == "0":
        return False
    interpreted = chosen == "1" and os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or (device.type == "cpu" and interpreted)) and _installed()


def handles(kind: str | None, tensor: Tensor) -> bool:
    """Whether the kernels can work on this tensor: a noise they know, contiguous, of a device and
    dtype they are for, no subclass that intercepts operations. The first call that asks for a noise
    and a dtype compiles and compares them, and says why if plain torch is used instead."""
    if kind not in _KINDS or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    if not takes(tensor.device):
        if not _installed():
            _tell_once("there is no Triton here: sweeps over CUDA weights go by plain torch")
        return False
    if tensor.dtype not in _DTYPES:
        _tell_once(f"triton kernels: sweeps over {tensor.dtype} weights go by plain torch")
        return False
    if not tensor.is_contiguous():
        return False
    return _ready(kind, tensor.dtype, tensor.device)


def takes_steps(kind: str, tensor: Tensor) -> bool:
    """Whether sweeps over a tensor that the kernels handle may have steps with moments: compiled
    and compared by themselves, when they are first asked for."""
    return _ready(kind, tensor.dtype, tensor.device, steps=True)


def fill(kind: str, out: Tensor, seed: int, pid: int, offset: int = 0, stream: int = 0) -> None:
    """`native.fill` on the device of `out`."""
    index = torch.full((1,), offset, dtype=torch.int64, device=out.device)
    _launch().spread(_KINDS[kind], out.view(1, -1), index, 1, seed, pid, stream)


def rows(kind: str, index: Tensor, width: int, seed: int, pid: int, stream: int = 0) -> Tensor:
    """`native.rows` on the device of `index`."""
    out = torch.empty(len(index), width, device=index.device)
    _launch().spread(_KINDS[kind], out, index.contiguous(), width, seed, pid, stream)
    return out


def sweep(
    kind: str,
    weight: Tensor,
    pid: int,
    terms: Sequence[Term | Step],
    mask: Tensor | None = None,
    *,
    limit: Limit | None = None,
    split: int = 0,
    offset: int = 0,
    kept: Mapping[int, Tensor] | None = None,
) -> None:
    """`native.sweep` in one launch; z that is kept is made again.

    Raises:
        ValueError: a tensor is something else.
    """
    _check("weight", weight, weight.device)
    _check_mask(mask, weight, offset)
    for moment in moments_of(terms):
        if moment is not None:
            _check("moment", moment, weight.device, torch.float32, weight.numel())
    job = _launch().Job(weight, pid, terms, mask, limit, split, offset)
    waiting, place = _waiting.jobs, (kind, weight.data_ptr())
    if waiting is None:
        sweep_many(kind, [job])
        return
    if place in waiting:
        before = waiting[place]
        if before.goes_on_with(job):
            waiting[place] = replace(before, terms=[*before.terms, *terms])
            return
        settle()
    _waiting.jobs[place] = job
    if mask is not None and mask.dtype == torch.bool and mask.numel() > _LARGE_MASK:
        settle()  # it was spread out for this sweep alone: do not let many of them pile up


def sweep_many(kind: str, jobs: Sequence[Job]) -> None:
    """Sweeps over many parameters, one launch for each device and dtype among them."""
    on = _launch()
    sorts = {}
    for job in jobs:
        sorts.setdefault((job.weight.device, job.weight.dtype), []).append(job)
    for those in sorts.values():
        on.Sweep(_KINDS[kind], those, on.kernels.sweep).launch()


@contextmanager
def together() -> Iterator[None]:
    """Sweeps of this thread are collected and launched at the end, all parameters in one grid.

    Whoever looks at the weights before that calls `settle` first. A second sweep over the same
    weights goes into the first one, or does so by itself if it goes by another mask.
    """
    if _waiting.jobs is not None:
        yield
        return
    _waiting.jobs = {}
    try:
        yield
        settle()
    finally:
        _waiting.jobs = None


def settle() -> None:
    """Launch what `together` has collected so far."""
    jobs = _waiting.jobs
    if jobs:
        _waiting.jobs = {}
        for kind in dict.fromkeys(kind for kind, _ in jobs):
            sweep_many(kind, [job for (other, _), job in jobs.items() if other == kind])


def pair(
    kind: str,
    weight: Tensor,
    pid: int,
    seed: int,
    eps: float,
    mask: Tensor | Limit | None,
    out_plus: Tensor,
    out_minus: Tensor,
    *,
    offset: int = 0,
    kept: Tensor | None = None,
) -> None:
    """`native.pair` in one launch, both results from one read.

    Raises:
        ValueError: a tensor is something else.
    """
    from zolab.optim.backend import Term

    on = _launch()
    given = mask if isinstance(mask, Tensor) else None
    limit = None if given is not None else mask
    for name, out in (("weight", weight), ("out_plus", out_plus), ("out_minus", out_minus)):
        _check(name, out, weight.device, weight.dtype, weight.numel())
    if weight.numel() and len({t.data_ptr() for t in (weight, out_plus, out_minus)}) < 3:
        raise ValueError("weight, out_plus and out_minus must not share memory")
    _check_mask(given, weight, offset)
    job = on.Job(weight, pid, [Term(eps, seed)], given, limit, 0, offset, out_plus, out_minus)
    on.Sweep(_KINDS[kind], [job], on.kernels.pair).launch()


def _check(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    size: int | None = None,
) -> None:
    """Make sure that a kernel may walk over a tensor's memory."""
    if (
        tensor.device != device
        or not tensor.is_contiguous()
        or (tensor.dtype not in _DTYPES if dtype is None else tensor.dtype != dtype)
        or (size is not None and tensor.numel() != size)
    ):
        raise ValueError(
            f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: expected a "
            f"contiguous tensor of {dtype or 'a dtype of weights'} on {device}"
            + ("" if size is None else f" with {size} elements")
        )


def _check_mask(mask: Tensor | None, weight: Tensor, offset: int) -> None:
    if mask is None:
        return
    if mask.dtype == torch.uint8:
        if offset % 8:
            raise ValueError(f"mask: bits begin with a byte, not at element {offset}")
        _check("mask", mask, weight.device, torch.uint8, -(-weight.numel() // 8))
    else:
        _check("mask", mask, weight.device, torch.bool, weight.numel())


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _launch() -> ModuleType:
    """The part that needs Triton, imported when it is first needed."""
    from zolab.optim.triton import launch

    return launch


@functools.cache
def _tell_once(what: str) -> None:
    _LOG.warning(what)


@functools.cache
def _ready(kind: str, dtype: torch.dtype, device: torch.device, steps: bool = False) -> bool:
    """Compile the kernels of a noise and a dtype and compare their bits with the specification."""
    try:
        from zolab.optim.triton.check import check, check_steps

        (check_steps if steps else check)(kind, dtype, device)
    except Exception as error:  # whatever it is, plain torch does the same work
        reason = (f"{error}".splitlines() or [""])[0] or type(error).__name__
        what = f"updates by moments and {kind}" if steps else kind
        _LOG.warning(
            "triton kernels are off for %s in %s, plain torch is used instead: %s",
            what,
            dtype,
            reason,
        )
        return False
    return True
