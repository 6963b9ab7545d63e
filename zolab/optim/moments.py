"""Updates that keep state: one elementwise form for momentum, Adam, HELENE and element-wise signs.

A rule hands over a `Step`; it is a part of a sweep as a `Term` is, so that one pass over memory
takes the way back of a walk, the update and the next perturbation. The functions here are the
specification: a faster backend does the same operations in the same order, each rounded on its own,
or says no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zolab.optim.backend import Term


@dataclass(frozen=True)
class Look:
    """One gradient estimate g = Σ_j c_j z_j, 0 where a mask is off, taken into the moments.

    The products are summed from the first probe on. m <- decay * m + share * g, and
    v <- decay * v + share * (g * g).

    Attributes:
        probes: (c_j, seed) of each probe, at least one.
        first: (decay, share) of m; None leaves it alone.
        second: (decay, share) of v; None leaves it alone.
    """

    probes: tuple[tuple[float, int], ...]
    first: tuple[float, float] | None = None
    second: tuple[float, float] | None = None


@dataclass(frozen=True)
class Divisor:
    """What the move is divided by: d = max(v, floor), its root if `root`, then d * times + plus."""

    floor: float = 0.0
    root: bool = False
    times: float = 1.0
    plus: float = 0.0


@dataclass(frozen=True)
class Step:
    """An update by moments m and v of the gradient estimate.

    Attributes:
        looks: in order; what each weight's moments take in.
        then: the move takes the place of z(seed) in this term; its seed is that of the rounding.
        first: m of the whole parameter, flat, float32 (float64 for such weights), changed in place;
            None: none is kept, and m begins at 0.
        second: v likewise.
        divisor: the move is m / divisor(v); None: m.
        sign: the move is the sign of m instead.
    """

    looks: tuple[Look, ...]
    then: Term
    first: Tensor | None = field(default=None, compare=False)
    second: Tensor | None = field(default=None, compare=False)
    divisor: Divisor | None = None
    sign: bool = False

    def seeds(self) -> list[int]:
        """Seeds of the probes, each once, in order."""
        return list(dict.fromkeys(seed for look in self.looks for _, seed in look.probes))


def has_state(terms: Sequence[Term | Step]) -> bool:
    """Whether a step is among some terms."""
    return any(isinstance(term, Step) for term in terms)


def moments_of(terms: Sequence[Term | Step]) -> tuple[Tensor | None, Tensor | None]:
    """m and v of the one step among some terms; ValueError if there are several."""
    steps = [term for term in terms if isinstance(term, Step)]
    if len(steps) > 1:
        raise ValueError(f"{len(steps)} steps with moments in a sweep: expected at most one")
    return (steps[0].first, steps[0].second) if steps else (None, None)


def seeds_of(terms: Sequence[Term | Step]) -> list[int]:
    """Seeds of all z that some terms read, each once, in order."""
    out: dict[int, None] = {}
    for term in terms:
        if isinstance(term, Step):
            out |= dict.fromkeys(term.seeds())
        elif term.a != 0.0:
            out[term.seed] = None
    return list(out)


def wide_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of moments: float64 for float64 weights, float32 for all others."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def moved(
    step: Step,
    read: Callable[[int], Tensor],
    start: int,
    part: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """The move of one chunk, after the moments there took in the estimates: (n,), wide; read only.

    Args:
        step: see `Step`.
        read: z of the chunk by seed: float32 (n,).
        start: index of the first element.
        part: the weights (n,); not read, but for shape and dtype.
        mask: bool (n,) or None.
    """
    wide, here = wide_dtype(part), slice(start, start + len(part))
    uses_v = step.divisor is not None or any(look.second for look in step.looks)
    m, v = (
        part.new_zeros(len(part) * used, dtype=wide) if kept is None else kept[here]
        for kept, used in ((step.first, True), (step.second, uses_v))
    )
    for look in step.looks:
        g: Tensor | None = None
        for c, seed in look.probes:
            term = read(seed).to(wide) * c
            g = term if g is None else g.add_(term)
        assert g is not None
        if mask is not None:
            g.masked_fill_(~mask, 0.0)
        if look.second is not None:
            _blend_(v, g * g, *look.second)
        if look.first is not None:
            _blend_(m, g, *look.first)
    if step.sign:
        return m.sign()
    return m if step.divisor is None else _divided(m, v, step.divisor)


def _blend_(moment: Tensor, value: Tensor, decay: float, share: float) -> None:
    """moment <- decay * moment + share * value, three roundings; `value` is used up."""
    moment.mul_(decay).add_(value.mul_(share))


def _divided(m: Tensor, v: Tensor, divisor: Divisor) -> Tensor:
    d = v.clamp(min=divisor.floor)
    if divisor.root:
        # torch's float32 root may be off by a bit; by way of float64 it is the nearest one.
        d = d.to(torch.float64).sqrt_().to(m.dtype)
    d.mul_(divisor.times).add_(divisor.plus)
    return torch.div(m, d, out=d)
