"""What a sweep is told, as C takes it: addresses of checked memory, terms, steps with moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import Array, pointer
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.moments import Divisor, Step
from zolab.optim.native import probe

if TYPE_CHECKING:
    from zolab.optim.backend import Term

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
MASK64 = (1 << 64) - 1


def address(
    name: str, tensor: Tensor, dtype: torch.dtype | None = None, size: int | None = None
) -> int:
    """Address of a tensor's memory, after making sure that C may walk over it."""
    if (
        tensor.device.type != "cpu"
        or not tensor.is_contiguous()
        or (tensor.dtype not in DTYPES if dtype is None else tensor.dtype != dtype)
        or (size is not None and tensor.numel() != size)
    ):
        raise ValueError(
            f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: expected a "
            f"contiguous CPU tensor of {dtype or 'a floating dtype'}"
            + ("" if size is None else f" with {size} elements")
        )
    return tensor.data_ptr()


def packed(
    terms: Sequence[Term | Step], size: int = 0, kept: Mapping[int, Tensor] | None = None
) -> Array[probe.Term]:
    """Terms as C takes them.

    Args:
        terms: what a sweep does, in order.
        size: elements of the weights, which moments and kept z must have.
        kept: by seed, z that is at hand; the others are made.
    """
    out = (probe.Term * len(terms))()
    write(out, [term.then if isinstance(term, Step) else term for term in terms])
    for c, term in zip(out, terms, strict=True):
        if isinstance(term, Step):
            c.step = pointer(_step(term, size, kept))
        else:
            c.z = _kept(term.seed, size, kept)
    return out


def write(out: Array[probe.Term], terms: Sequence[Term]) -> None:
    """The numbers of terms into as many that C takes; all else of these stays."""
    for c, term in zip(out, terms, strict=True):
        c.a, c.scale, c.stochastic = term.a, term.scale, term.stochastic
        c.seed = term.seed & MASK64


def _step(step: Step, size: int, kept: Mapping[int, Tensor] | None) -> probe.Step:
    looks = (probe.Look * len(step.looks))()
    for c, look in zip(looks, step.looks, strict=True):
        made = [probe.Probe(a, seed & MASK64, _kept(seed, size, kept)) for a, seed in look.probes]
        c.probes, c.count = (probe.Probe * len(made))(*made), len(made)
        c.first, c.second = look.first is not None, look.second is not None
        c.decay1, c.share1 = look.first or (1.0, 0.0)
        c.decay2, c.share2 = look.second or (1.0, 0.0)
    m, v = (
        None if moment is None else address("moment", moment, torch.float32, size)
        for moment in (step.first, step.second)
    )
    by = step.divisor or Divisor()
    divides = step.divisor is not None
    last = (divides, by.root, step.sign, by.floor, by.times, by.plus)
    return probe.Step(m, v, looks, len(looks), *last)


def _kept(seed: int, size: int, kept: Mapping[int, Tensor] | None) -> int | None:
    z = kept.get(seed) if kept else None
    return None if z is None else address("kept", z, torch.float32, size)
