"""The sweeps over weights, in plain torch: the specification for the faster backends.

A sweep reads a parameter once, chunk by chunk, and applies its terms in order, each rounded to the
parameter's dtype. A fused sweep therefore equals the same terms applied one by one, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zolab.optim import fast
from zolab.optim.late import Late, operand
from zolab.optim.moments import Step, has_state, moved, seeds_of, wide_dtype
from zolab.optim.rounding import stochastic_round

#: Elements per chunk: a multiple of every noise's block, small enough to stay in cache.
CHUNK = 1 << 19
#: Elements looked at once where a tensor is turned into a mask, so that scratch stays small.
PIECE = 1 << 18


@dataclass(frozen=True)
class Term:
    """One operation of a sweep: w <- round(w * scale), then w <- round(w + a * z(seed)).

    Attributes:
        a: coefficient of z; the product a * z is rounded to float32 before it is added. A number
            that the host has not read (`late.Late`) counts as other than 0.
        seed: 64-bit seed of the direction.
        scale: factor on the weights first (weight decay); 1 leaves them alone. May be late, too.
        stochastic: round to 16-bit weights stochastically instead of to nearest.
    """

    a: float | Late
    seed: int
    scale: float | Late = 1.0
    stochastic: bool = False


@dataclass(frozen=True)
class Limit:
    """A mask that follows the weights: those of magnitude <= threshold move, or those >= it.

    Attributes:
        threshold: compared in the dtype of the weights.
        below: which of the two.
    """

    threshold: float
    below: bool

    def of(self, weight: Tensor) -> Tensor:
        """The mask of some weights: bool, of their shape."""
        compare = torch.le if self.below else torch.ge
        keep = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        pieces = zip(weight.view(-1).split(PIECE), keep.view(-1).split(PIECE), strict=True)
        for part, out in pieces:
            compare(part.abs(), self.threshold, out=out)
        return keep


class ZSource(Protocol):
    """Where a sweep finds z: fresh from Philox, or kept from an earlier sweep of the step."""

    def kind_of(self, pid: int) -> str | None:
        """Name of the elementwise noise that a parameter's z is, for faster backends; None for
        anything else."""

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        """Elements `offset` to `offset + count` of a direction: float32 (count,); read only."""

    def chunk(self, pid: int) -> int:
        """Elements of a parameter that plain torch sweeps at once."""

    def sweep(self, weight: Tensor, pid: int, terms: Sequence[Term]) -> bool:
        """`sweep_` without a mask, if the source has a way of its own: whether it has."""

    def stored(
        self, pid: int, seed: int, offset: int, count: int, device: torch.device
    ) -> Tensor | None:
        """The same elements if the source keeps them, None if they are made when needed."""


def sweep_(
    weight: Tensor,
    pid: int,
    terms: Sequence[Term | Step],
    source: ZSource,
    mask: Tensor | Limit | None = None,
) -> None:
    """Apply `terms` in order to a whole parameter, in place.

    Args:
        weight: any shape, contiguous, float32, float64, bfloat16 or float16.
        pid: parameter id.
        terms: operations, see `Term` and `Step`.
        source: supplies z.
        mask: bool, same number of elements; False elements do not change by a single bit, but
            their moments go on with an estimate of 0. A limit is decided from the weights as they
            are.
    """
    limit = mask if isinstance(mask, Limit) else None
    kind = source.kind_of(pid)
    on = fast.kernels(kind, weight, has_state(terms))
    if on is not None:
        kept = _stored(source, pid, terms, weight) if kind in on.READS_KEPT else None
        mask = None if limit else mask
        on.sweep(kind, weight, pid, terms, mask, limit=limit, kept=kept)
        return
    if mask is None and not has_state(terms) and source.sweep(weight, pid, terms):
        return
    fast.settle()  # a sweep of these weights by kernels may be waiting
    mask = limit.of(weight) if limit else mask
    flat = weight.view(-1)
    keep = None if mask is None else mask.view(-1)
    at_once = source.chunk(pid)
    for start in range(0, flat.numel(), at_once):
        part = flat[start : start + at_once]
        chosen = None if keep is None else keep[start : start + at_once]
        read = _last_kept(source, pid, start, part.numel(), flat.device)
        for term in terms:
            if isinstance(term, Step):
                move, term = moved(term, read, start, part, chosen), term.then
            else:
                move = read(term.seed) if term.a != 0.0 else part
            apply_term_(part, move, term, pid, start, chosen)


def _last_kept(
    source: ZSource, pid: int, start: int, count: int, device: torch.device
) -> Callable[[int], Tensor]:
    """z of a chunk by seed; that of the last seed is not made anew."""
    seed_of_last, last = None, None

    def read(seed: int) -> Tensor:
        nonlocal seed_of_last, last
        if last is None or seed != seed_of_last:
            seed_of_last, last = seed, source.z(pid, seed, start, count, device)
        return last

    return read


def apply_term_(
    part: Tensor, z: Tensor, term: Term, pid: int, offset: int, mask: Tensor | None
) -> None:
    """One term on one chunk: part (n,), z float32 (n,), mask bool (n,) or None."""
    if term.scale != 1.0:
        _write_(part, _wide(part) * operand(term.scale), term, pid, offset, mask)
    if term.a != 0.0:
        a = operand(term.a)
        step = z * a if part.dtype != torch.float64 else z.to(torch.float64) * a
        if isinstance(a, Tensor):
            # One that turns out to be 0 must leave -0 as it is.
            value = torch.where(a != 0.0, step + part, _wide(part))
            _write_(part, value, term, pid, offset, mask)
        elif mask is None and part.dtype == step.dtype:
            part.add_(step)
        else:
            _write_(part, step.add_(part), term, pid, offset, mask)


def resweep_(
    weight: Tensor,
    pid: int,
    before: Sequence[Term | Step],
    after: Sequence[Term | Step],
    limit: Limit,
    mask: Tensor,
    source: ZSource,
) -> None:
    """One sweep: `before` under the mask as it is, a new mask from the weights, `after` under it.

    Args:
        weight, pid, source: as for `sweep_`; only where there are kernels for weight and terms.
        before, after: terms.
        limit: what decides.
        mask: bool or bits (see `bits.pack_bits`) of the whole parameter; changed in place.
    """
    terms = [*before, *after]
    kind = source.kind_of(pid)
    on = fast.kernels(kind, weight, has_state(terms))
    kept = _stored(source, pid, terms, weight) if kind in on.READS_KEPT else None
    on.sweep(kind, weight, pid, terms, mask, limit=limit, split=len(before), kept=kept)


def pair(
    weight: Tensor,
    pid: int,
    seed: int,
    eps: float,
    source: ZSource,
    mask: Tensor | Limit | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Both perturbed copies from one read: W + eps z and W - eps z, same shape and dtype as W.

    Args:
        weight: any shape, contiguous, not modified.
        pid: parameter id.
        seed: direction.
        eps: perturbation scale.
        source: supplies z.
        mask: bool, as many elements, or a limit on the weights; where False, 0 is added.
        offset: index of the first element within the parameter, for blocks of rows.
    """
    plus, minus = torch.empty_like(weight), torch.empty_like(weight)
    kind = source.kind_of(pid)
    on = fast.kernels(kind, weight)
    if on is not None:
        kept = None
        if kind in on.READS_KEPT:
            kept = source.stored(pid, seed, offset, weight.numel(), weight.device)
        on.pair(kind, weight, pid, seed, eps, mask, plus, minus, offset=offset, kept=kept)
        return plus, minus
    mask = mask.of(weight) if isinstance(mask, Limit) else mask
    keep = None if mask is None else mask.view(-1)
    above, below = plus.view(-1), minus.view(-1)
    at_once = source.chunk(pid)
    for start in range(0, weight.numel(), at_once):
        here = slice(start, start + at_once)
        wide = _wide(weight.view(-1)[here])
        z = source.z(pid, seed, offset + start, len(wide), weight.device)
        step = z.to(wide.dtype) * eps
        if keep is not None:
            step.masked_fill_(~keep[here], 0.0)
        if wide.dtype == weight.dtype:
            torch.add(wide, step, out=above[here])
            torch.sub(wide, step, out=below[here])
            continue
        above[here] = wide + step
        below[here] = wide - step
    return plus, minus


def _stored(
    source: ZSource, pid: int, terms: Sequence[Term | Step], weight: Tensor
) -> dict[int, Tensor] | None:
    """What the source keeps of the seeds of some terms; None if that is not all of them."""
    out = {}
    for seed in seeds_of(terms):
        z = source.stored(pid, seed, 0, weight.numel(), weight.device)
        if z is None:
            return None
        out[seed] = z
    return out


def _wide(tensor: Tensor) -> Tensor:
    """Weights in the dtype sums are made in: float64 stays, all else is float32."""
    return tensor.to(wide_dtype(tensor))


def _write_(
    part: Tensor, value: Tensor, term: Term, pid: int, offset: int, mask: Tensor | None
) -> None:
    """Round `value` to the dtype of `part` and store it where the mask allows."""
    if term.stochastic and part.dtype in (torch.bfloat16, torch.float16):
        value = stochastic_round(value, part.dtype, term.seed, pid, offset)
    if mask is None:
        part.copy_(value)
    else:
        torch.where(mask, value.to(part.dtype), part, out=part)
