"""Updates by moments for the tests of kernels, as the shipped rules hand them over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tests.optim.native.parts import PID, SEED, Source, assert_same_bits, specification
from zolab.optim import backend
from zolab.optim.backend import Limit, Term
from zolab.optim.moments import Divisor, Look, Step, wide_dtype

ONE, TWO = ((0.7, SEED),), ((0.7, SEED), (-0.3, 5))
THEN, ROUNDED = Term(-1e-2, SEED, 0.999), Term(-1e-2, SEED, 0.99, True)
BACK, ON = Term(-1e-3, SEED), Term(1e-3, 9)
ADAM = Divisor(root=True, times=31.6, plus=1e-8)
HELENE = Divisor(0.3, times=0.7, plus=1e-8)


def _look(probes, first=None, second=None) -> tuple[Look]:
    return (Look(probes, first, second),)


#: Name -> what a sweep does; m and v are added where the second and third say so.
UPDATES: dict[str, tuple[list[Term | Step], bool, bool]] = {
    "momentum": ([BACK, Step(_look(ONE, (0.9, 1.0)), THEN), ON], True, False),
    "adam": ([Step(_look(TWO, (0.9, 0.1), (0.999, 1e-3)), ROUNDED, divisor=ADAM)], True, True),
    "late_decay": (
        [Step(_look(ONE, (0.9, 0.1), (0.9, 0.1)), BACK, divisor=ADAM), Term(0.0, SEED, 0.9, True)],
        True,
        True,
    ),
    "replayed": (
        [
            Step(
                (Look(ONE, (1.0, 0.1), (1.0, 0.2)), Look(TWO, (1.0, 0.09), (1.0, 0.16))),
                ROUNDED,
                divisor=ADAM,
            )
        ],
        False,
        False,
    ),
    "helene": (
        [BACK, Step(_look(TWO, (0.9, 0.95), (0.99, 0.4)), THEN, divisor=HELENE), ON],
        True,
        True,
    ),
    "between_looks": ([Step(_look(ONE, (0.9, 0.95)), ROUNDED, divisor=HELENE)], True, True),
    "no_momentum": ([Step(_look(ONE, (0.9, 1.0), (0.9, 0.1)), THEN, divisor=HELENE)], False, True),
    "look_alone": ([Step(_look(TWO, None, (0.99, 0.4)), Term(0.0, SEED))], False, True),
    "sign": ([BACK, Step(_look(TWO, (0.0, 1.0)), ROUNDED, sign=True), ON], False, False),
}


def moments(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """m around 0 and v >= 0, 0 in places."""
    generator = torch.Generator().manual_seed(size)
    m, v = torch.randn(2, size, generator=generator, dtype=torch.float64).to(dtype)
    m[::11], v[::5] = -0.0, 0.0
    return m, v.square_()


def update(name: str, weight: Tensor) -> tuple[list[Term | Step], list[Tensor]]:
    """The terms of a case with moments of their own, and these moments."""
    terms, first, second = UPDATES[name]
    m, v = moments(weight.numel(), wide_dtype(weight))
    kept = {"first": m if first else None, "second": v if second else None}
    filled = [replace(term, **kept) if isinstance(term, Step) else term for term in terms]
    return filled, [moment for moment in kept.values() if moment is not None]


def check_update(
    name: str,
    kind: str,
    weight: Tensor,
    sweep: Callable[[Tensor, list[Term | Step]], None],
    mask: Tensor | Limit | None = None,
) -> None:
    """A sweep gives the weights and moments that plain torch does, bit for bit."""
    expected, found = weight.clone(), weight.clone()
    terms, wanted = update(name, weight)
    with specification():
        backend.sweep_(expected, PID, terms, Source(kind), mask)
    terms, moved = update(name, weight)
    sweep(found, terms)
    assert_same_bits(found, expected)
    for moment, want in zip(moved, wanted, strict=True):
        assert_same_bits(moment, want)
