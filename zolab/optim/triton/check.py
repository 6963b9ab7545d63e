"""Before the kernels touch a weight: do they compile here, and are their bits the right ones?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zolab.optim import triton
from zolab.optim.backend import Limit, Term, pair, sweep_
from zolab.optim.bits import pack_bits
from zolab.optim.directions import Direction
from zolab.optim.moments import Divisor, Look, Step
from zolab.optim.triton.launch import BLOCK, Job

_SEED, _PID = 0x9E3779B97F4A7C15, 7
_INTS = {2: torch.int16, 4: torch.int32}


class Mismatch(Exception):
    """A kernel gave other bits than the specification."""


class Defined(Direction):
    """z by the definition of its noise, on the CPU, counter by counter."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = None  # nothing that a faster backend makes

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        per = self.noise.per_block
        first, last = offset // per, (offset + count - 1) // per + 1
        values = self.noise.blocks(torch.arange(first, last), seed, pid).view(-1)
        return values[offset - first * per :][:count].to(device)


def check(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Run every kernel of a noise and a dtype, with memory of both alignments.

    Raises:
        Mismatch: bits differ from those of plain torch on the CPU.
        Exception: whatever the compiler or the driver raises.
    """
    source, size = Defined(kind), BLOCK + 37
    start = torch.linspace(-0.03, 0.02, size + 1).to(dtype)
    terms = [Term(1e-3, 5), Term(-7e-5, _SEED, 0.999, True), Term(2e-3, _SEED)]
    limit = Limit(0.01, True)
    for shift in (0, 1):
        old = start[shift : shift + size]
        mask = old > 0
        whole, under, plus, minus = (
            start.to(device, copy=True)[shift : shift + size] for _ in range(4)
        )
        held = pack_bits(mask).to(device)
        jobs = [Job(whole, _PID, terms), Job(under, _PID, terms, held, limit, 1)]
        triton.sweep_many(kind, jobs)
        expected = [old.clone(), old.clone()]
        sweep_(expected[0], _PID, terms, source)
        sweep_(expected[1], _PID, terms[:1], source, mask)
        decided = limit.of(expected[1])
        sweep_(expected[1], _PID, terms[1:], source, decided)
        _same(f"{kind} sweep", whole, expected[0])
        _same(f"{kind} sweep under a mask", under, expected[1])
        if not torch.equal(held.cpu(), pack_bits(decided)):
            raise Mismatch("the mask of a sweep differs from that of plain torch")
        where, offset = mask.to(device), 8 - 5 * shift
        triton.pair(kind, old.to(device), _PID, _SEED, 1e-3, where, plus, minus, offset=offset)
        for found, want in zip(
            (plus, minus), pair(old, _PID, _SEED, 1e-3, source, mask, offset), strict=True
        ):
            _same(f"{kind} pair", found, want)
    index = torch.tensor([2, 0], device=device)
    table = triton.rows(kind, index, 131, _SEED, _PID)
    wanted = source.z(_PID, _SEED, 0, 3 * 131, torch.device("cpu")).view(3, 131)
    _same(f"rows of {kind}", table, wanted[[2, 0]])


def check_steps(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Run sweeps with moments; raises as `check` does."""
    source, size = Defined(kind), BLOCK + 37
    looks = (
        Look(((0.5, _SEED), (-0.3, 5)), first=(0.9, 0.7), second=(0.99, 0.2)),
        Look(((0.2, 5),), first=(0.8, 1.0)),
    )
    for sign, root in ((False, True), (False, False), (True, False)):
        then = Term(-1e-2, _SEED, 0.999, sign)
        step = Step(looks, then, divisor=Divisor(0.1, root, 0.7, 1e-6), sign=sign)
        found, expected = (
            torch.linspace(-0.03, 0.02, size).to(dtype).to(place) for place in (device, "cpu")
        )
        kept = [
            [torch.linspace(begin, 1.0, size).to(place) for begin in (-1.0, 0.0)]
            for place in (device, "cpu")
        ]
        mask = expected > 0
        for weight, (m, v), where in ((found, kept[0], device), (expected, kept[1], None)):
            terms = [Term(-1e-3, 5), replace(step, first=m, second=v), Term(1e-3, 9)]
            if where is None:
                sweep_(weight, _PID, terms, source, mask)
            else:
                triton.sweep_many(kind, [Job(weight, _PID, terms, mask.to(where))])
        for name, mine, theirs in zip(
            ("weights", "m", "v"), (found, *kept[0]), (expected, *kept[1]), strict=True
        ):
            _same(f"{name} of an update by moments with {kind}", mine, theirs)


def _same(name: str, found: Tensor, expected: Tensor) -> None:
    bits = _INTS[expected.element_size()]
    if not torch.equal(found.cpu().view(bits), expected.view(bits)):
        raise Mismatch(f"{name} in {expected.dtype} differs from that of plain torch")
