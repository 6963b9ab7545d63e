"""What the tests of the kernels compare with: the specification, counter by counter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from zolab.optim import backend, native
from zolab.optim.backend import Term
from zolab.optim.directions import Direction
from zolab.optim.noise import NOISES

KINDS = tuple(NOISES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED, PID = 0xFEDCBA9876543210, 3
INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler here"
)


@contextmanager
def specification() -> Iterator[None]:
    """Plain torch only, whatever hooks there are."""
    before = os.environ.get("ZOLAB_NATIVE")
    os.environ["ZOLAB_NATIVE"] = "0"
    try:
        yield
    finally:
        os.environ.pop("ZOLAB_NATIVE")
        if before is not None:
            os.environ["ZOLAB_NATIVE"] = before


class Source(Direction):
    """z by the definition of the noise, counter by counter."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = None  # nothing that a faster backend could make

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        per = self.noise.per_block
        first, last = offset // per, (offset + count - 1) // per + 1
        values = self.noise.blocks(torch.arange(first, last), seed, pid).view(-1)
        return values[offset - first * per :][:count]


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal bit by bit, but for what is inside a NaN."""
    assert found.dtype == expected.dtype
    bits = INTS[found.element_size()]
    both_nan = found.isnan() & expected.isnan()
    wrong = (found.view(bits) != expected.view(bits)) & ~both_nan
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()}, first at {int(wrong.view(-1).nonzero()[0])}"
    )


def weights(size: int, dtype: torch.dtype) -> Tensor:
    made = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    made = (made * 0.02).to(dtype)
    made[::7] = -0.0
    return made


def random_mask(size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(size + 1)) < 0.4


def check_sweep(
    kind: str, weight: Tensor, terms: list[Term], mask: Tensor | None = None, **options
) -> None:
    expected = weight.clone()
    with specification():
        backend.sweep_(expected, PID, terms, Source(kind), mask)
    native.sweep(kind, weight, PID, terms, mask, **options)
    assert_same_bits(weight, expected)


# One of everything a walk or an update does: a plain move, the same seed twice, decay, both in one
# term, nothing at all, and stochastic rounding of a decay and of a move.
TERMS = {
    "move": [Term(1e-3, SEED)],
    "walk": [Term(1e-3, 5), Term(-7e-5, 5, 0.999), Term(2e-3, SEED), Term(-1e-3, SEED)],
    "idle": [Term(0.0, 5), Term(0.0, 5, 1.0, True)],
    "decay": [Term(0.0, 5, 0.99)],
    "stochastic": [Term(3e-4, SEED, 0.9, True), Term(1e-5, 9, 1.0, True), Term(1e-3, 9)],
}
