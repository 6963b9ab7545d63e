"""The Triton kernels against the specification, run by Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.optim.native.parts import (
    KINDS,
    PID,
    SEED,
    TERMS,
    Source,
    assert_same_bits,
    random_mask,
    weights,
)
from zolab.optim import backend, triton
from zolab.optim.backend import Limit, Term
from zolab.optim.bits import pack_bits, unpack_bits
from zolab.optim.noise import NOISES

pytest.importorskip("triton", reason="there is no Triton for this platform")
from zolab.optim.triton import launch
from zolab.optim.triton.launch import BLOCK, Job

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def swept(kind: str, weight: Tensor, terms: list[Term], mask: Tensor | None, offset: int) -> Tensor:
    """What the specification makes of a part of a parameter that begins at `offset`."""
    whole = torch.zeros(offset + len(weight), dtype=weight.dtype)
    whole[offset:] = weight
    keep = torch.zeros(len(whole), dtype=torch.bool)
    keep[offset:] = True if mask is None else mask
    backend.sweep_(whole, PID, terms, Source(kind), keep)
    return whole[offset:]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_of_many_parameters_in_one_launch(kind: str, dtype: torch.dtype) -> None:
    jobs, expected = [], []
    cases = zip((1, 37, 300, BLOCK + 5, 70), TERMS.values(), (0, 5, BLOCK - 100, 0, 8), strict=True)
    for number, (size, terms, offset) in enumerate(cases):
        mask = (None, random_mask(size))[number % 2] if number < 4 else random_mask(size)
        start = weights(size + 1, dtype)[number % 2 :][:size]
        expected.append(swept(kind, start, terms, mask, offset))
        held = pack_bits(mask) if number == 4 else mask
        jobs.append(Job(start.clone(), PID, terms, held, offset=offset))
    triton.sweep_many(kind, jobs)
    for job, want in zip(jobs, expected, strict=True):
        assert_same_bits(job.weight, want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, DTYPES, strict=True)))
def test_a_new_mask_between_two_terms(kind: str, dtype: torch.dtype, packed: bool) -> None:
    size = BLOCK + 13
    weight, old, limit = weights(size, dtype), random_mask(size), Limit(0.01, packed)
    same = weight.clone()
    backend.sweep_(same, PID, TERMS["walk"][:2], Source(kind), old)
    new = limit.of(same)
    backend.sweep_(same, PID, TERMS["walk"][2:], Source(kind), new)
    held = pack_bits(old) if packed else old.clone()
    triton.sweep(kind, weight, PID, TERMS["walk"], held, limit=limit, split=2)
    assert_same_bits(weight, same)
    assert torch.equal(unpack_bits(held, new.shape) if packed else held, new)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pairs(kind: str, dtype: torch.dtype) -> None:
    for size, offset, form in ((1, 0, None), (301, BLOCK - 104, "bits"), (77, 131, "limit")):
        weight, mask = weights(size, dtype), random_mask(size)
        given = {None: None, "bits": pack_bits(mask), "limit": Limit(0.01, False)}[form]
        keep = {None: None, "bits": mask, "limit": Limit(0.01, False).of(weight)}[form]
        plus, minus = torch.empty_like(weight), torch.empty_like(weight)
        triton.pair(kind, weight, PID, SEED, 1e-3, given, plus, minus, offset=offset)
        wanted = backend.pair(weight, PID, SEED, 1e-3, Source(kind), keep, offset)
        for found, want in zip((plus, minus), wanted, strict=True):
            assert_same_bits(found, want)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_rows_of_z(kind: str) -> None:
    noise = NOISES[kind]()
    # The last offset lets the low word of the counter wrap around in the middle.
    wrap = noise.per_block * (1 << 32) - 51
    cases = ((1, 0, 0), (129, BLOCK - 1, 4), (120, wrap, 0))
    for size, offset, stream in cases:
        found, expected = torch.empty(size), torch.empty(size)
        triton.fill(kind, found, SEED, (1 << 32) - 1, offset, stream)
        noise.fill(expected, SEED, (1 << 32) - 1, offset, stream)
        assert_same_bits(found, expected)
    for index, width in ((torch.tensor([5, 0, 5]), 3), (torch.tensor([1 << 40]), 131)):
        expected = noise.rows(index, width, SEED, PID)
        assert_same_bits(triton.rows(kind, index, width, SEED, PID), expected)
    assert triton.rows(kind, index[:0], 3, SEED, PID).shape == (0, 3)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_16_bit_weight(dtype: torch.dtype, rounded: bool, monkeypatch) -> None:
    monkeypatch.setattr(launch, "BLOCK", 1 << 16)  # one tile: the interpreter is slow by the tile
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    changes = [Term(0.0, 7, scale, rounded) for scale in (0.75, 1.5, 2.0**-10, 2.0**-125, 3e38)]
    changes += [Term(a, 7, 1.0, rounded) for a in (2.0**-24, 3e-8, 0.3, 6e4, float("nan"))]
    jobs = [Job(every.clone(), PID, [change]) for change in changes]
    triton.sweep_many("gauss", jobs)
    for job in jobs:
        expected = every.clone()
        backend.sweep_(expected, PID, job.terms, Source("gauss"))
        assert_same_bits(job.weight, expected)


def test_odd_values_in_wide_weights() -> None:
    info = torch.finfo(torch.float32)
    odd = [0.0, -0.0, info.tiny, -info.tiny / 4, info.max, -info.max]
    weight = torch.tensor([*odd, float("inf"), -float("inf"), float("nan")] * 7)
    for a in (info.tiny / 8, 1e38):
        found, expected = weight.clone(), weight.clone()
        triton.sweep("gauss", found, PID, [Term(a, 7, 0.3)], weight > 0)
        backend.sweep_(expected, PID, [Term(a, 7, 0.3)], Source("gauss"), weight > 0)
        assert_same_bits(found, expected)


def test_a_launch_goes_by_what_is_in_device_memory() -> None:
    # A captured launch is repeated with other coefficients, which nobody on the host knows.
    start = weights(90, torch.bfloat16)
    job = Job(start.clone(), PID, [Term(1.0, 5, 0.5), Term(1.0, SEED)])
    launched = launch.Sweep(1, [job], launch.kernels.sweep)
    launched.coefficients.copy_(torch.tensor([[3e-3, 1.0], [0.0, 0.999]]))
    launched.launch()
    expected = start.clone()
    backend.sweep_(expected, PID, [Term(3e-3, 5), Term(0.0, SEED, 0.999)], Source("gauss8"))
    assert_same_bits(job.weight, expected)


def test_nothing_to_do() -> None:
    empty = torch.empty(0)
    triton.sweep("gauss", empty, PID, TERMS["move"])
    triton.fill("gauss", empty, SEED, PID)
    weight = weights(9, torch.float32)
    triton.sweep("gauss", weight, PID, [])
    assert_same_bits(weight, weights(9, torch.float32))


def test_refuses_memory_it_must_not_touch() -> None:
    flat = torch.zeros(8, 8)
    bits = torch.zeros(8, dtype=torch.uint8)
    bad = (
        lambda: triton.sweep("gauss", flat.double(), 1, TERMS["move"]),
        lambda: triton.sweep("gauss", flat.t()[1:], 1, TERMS["move"]),
        lambda: triton.sweep("gauss", flat, 1, TERMS["move"], torch.ones(64)),
        lambda: triton.sweep("gauss", flat, 1, TERMS["move"], bits, offset=3),
        lambda: triton.pair("gauss", flat, 1, 2, 0.1, None, flat, flat.clone()),
        lambda: triton.pair("gauss", flat, 1, 2, 0.1, None, flat.clone(), flat[1:].clone()),
    )
    for call in bad:
        with pytest.raises(ValueError, match=r"expected a cont|share memory|with a byte"):
            call()
    assert not flat.any()


def test_alignment_changes_nothing() -> None:
    for dtype, shift in itertools.product(DTYPES[:2], (1, 8)):
        weight = weights(400, dtype)[shift:-shift]
        expected = swept("gauss8", weight, TERMS["move"], None, 0)
        assert Job(weight, PID, TERMS["move"]).aligned() == (shift == 8)
        triton.sweep("gauss8", weight, PID, TERMS["move"])
        assert_same_bits(weight, expected)
