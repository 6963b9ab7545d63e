"""The native kernels against their specification."""

from __future__ import annotations

import ctypes
import itertools
import os

import pytest
import torch

from tests.optim.native.parts import (
    DTYPES,
    KINDS,
    PID,
    SEED,
    TERMS,
    Source,
    assert_same_bits,
    check_sweep,
    needs_compiler,
    random_mask,
    specification,
    weights,
)
from zolab.optim import Gaussian, Rademacher, backend, native
from zolab.optim.backend import Limit, Term
from zolab.optim.bits import pack_bits, unpack_bits
from zolab.optim.directions import Direction
from zolab.optim.native import jobs
from zolab.optim.noise import NOISES


@needs_compiler
@pytest.mark.usefixtures("_built")
class TestEquality:
    def test_philox_gives_the_published_words(self) -> None:
        ones = (1 << 64) - 1
        known = {
            (0, 0, 0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
            (ones, ones, 0xFFFFFFFF, 0xFFFFFFFF): "408f276d 41c83b0e a20bc7c6 6d5451fd",
            (0x85A308D3243F6A88, 0x299F31D0A4093822, 0x13198A2E, 0x03707344): (
                "d16cfe09 94fdcceb 5001e420 24126ea1"
            ),
        }
        out = (ctypes.c_uint32 * 4)()
        for (block, seed, pid, stream), words in known.items():
            native._library().lib.zo_philox(block, seed, pid, stream, out)
            assert " ".join(f"{word:08x}" for word in out) == words

    @pytest.mark.parametrize("kind", KINDS)
    def test_fill(self, kind: str) -> None:
        noise = NOISES[kind]()
        # The last offset lets the low word of the counter wrap around in the middle.
        wrap = noise.per_block * (1 << 32) - 1001
        sizes, offsets = (0, 1, 3, 127, 129, 2048, 2049, 9001), (0, 1, 130, 2047, 6144, wrap)
        for size, offset, stream in itertools.product(sizes, offsets, (0, 4)):
            found, expected = torch.empty(size), torch.empty(size)
            native.fill(kind, found, SEED, PID, offset, stream)
            with specification():
                noise.fill(expected, SEED, PID, offset, stream)
            assert_same_bits(found, expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_fill_of_many_elements(self, kind: str) -> None:
        found, expected = torch.empty(1_000_003), torch.empty(1_000_003)
        native.fill(kind, found, 1, (1 << 32) - 1)
        with specification():
            NOISES[kind]().fill(expected, 1, (1 << 32) - 1)
        assert_same_bits(found, expected)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_threads_change_nothing(self, threads: int) -> None:
        size = jobs.PARALLEL_FROM + 12345
        start, mask = weights(size, torch.bfloat16), random_mask(size)
        filled, swept = torch.empty(size), start.clone()
        plus, minus = torch.empty_like(start), torch.empty_like(start)
        torch.set_num_threads(threads)
        native.fill("gauss", filled, SEED, PID, 77)
        native.sweep("gauss", swept, PID, TERMS["stochastic"], mask)
        native.pair("gauss", start, PID, SEED, 1e-3, mask, plus, minus)
        table = native.rows("gauss8", torch.arange(size // 64), 64, SEED, PID)
        with specification():
            expected = torch.empty(size)
            NOISES["gauss"]().fill(expected, SEED, PID, 77)
            assert_same_bits(filled, expected)
            again = start.clone()
            backend.sweep_(again, PID, TERMS["stochastic"], Source("gauss"), mask)
            assert_same_bits(swept, again)
            wanted = backend.pair(start, PID, SEED, 1e-3, Source("gauss"), mask)
            for found, want in zip((plus, minus), wanted, strict=True):
                assert_same_bits(found, want)
            z = Source("gauss8").z(PID, SEED, 0, size // 64 * 64, start.device)
            assert_same_bits(table.view(-1), z)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    def test_sweep(self, kind: str, dtype: torch.dtype) -> None:
        for size, name, masked in itertools.product((1, 37, 2048, 6149), TERMS, (False, True)):
            mask = random_mask(size) if masked else None
            check_sweep(kind, weights(size, dtype), TERMS[name], mask)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_sweep_with_kept_z(self, dtype: torch.dtype) -> None:
        weight = weights(5001, dtype)
        z = Source("gauss").z(PID, SEED, 0, 5001, weight.device)
        for name in TERMS:
            check_sweep("gauss", weight, TERMS[name], random_mask(5001), kept={SEED: z})

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_part_is_swept_as_in_the_whole(self, kind: str, dtype: torch.dtype) -> None:
        weight = weights(9000, dtype)
        whole = weight.clone()
        native.sweep(kind, whole, PID, TERMS["stochastic"])
        for start, end in ((0, 1), (1, 2050), (2050, 4099), (4099, 9000)):
            native.sweep(kind, weight[start:end], PID, TERMS["stochastic"], offset=start)
        assert_same_bits(weight, whole)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    def test_pair(self, kind: str, dtype: torch.dtype) -> None:
        for size, offset, masked in itertools.product((1, 37, 4099), (0, 130), (False, True)):
            weight = weights(size, dtype)
            mask = random_mask(size) if masked else None
            z = Source(kind).z(PID, SEED, offset, size, weight.device)
            for kept in (None, z):
                plus, minus = torch.empty_like(weight), torch.empty_like(weight)
                native.pair(
                    kind, weight, PID, SEED, 1e-3, mask, plus, minus, offset=offset, kept=kept
                )
                with specification():
                    expected = backend.pair(weight, PID, SEED, 1e-3, Source(kind), mask, offset)
                assert_same_bits(plus, expected[0])
                assert_same_bits(minus, expected[1])

    @pytest.mark.parametrize("kind", KINDS)
    def test_rows(self, kind: str) -> None:
        index = torch.tensor([5, 0, 5, 1 << 40, 31])
        for width in (1, 3, 64, 131, 2050):
            with specification():
                expected = NOISES[kind]().rows(index, width, SEED, PID)
            assert_same_bits(native.rows(kind, index, width, SEED, PID), expected)
        assert native.rows(kind, index[:0], 3, SEED, PID).shape == (0, 3)

    @pytest.mark.parametrize("stochastic", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_16_bit_weight(self, dtype: torch.dtype, stochastic: bool) -> None:
        # Zeros of both signs, subnormals, the largest, infinities and NaNs, each moved by amounts
        # that make ties (products with few bits), overflows and underflows.
        every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        for scale in (0.5, 0.75, 1.5, 3.0, 2.0**-10, 2.0**-125, 1.001, float("inf")):
            check_sweep("gauss", every.clone(), [Term(0.0, 7, scale, stochastic)])
        for a in (2.0**-24, 3e-8, 1e-4, 0.3, 40.0, 6e4, 2.0**120, 3e38, float("nan")):
            for kind in ("gauss", "rademacher"):
                check_sweep(kind, every.clone(), [Term(a, 7, 1.0, stochastic)])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_odd_values_in_wide_weights(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        odd = [0.0, -0.0, info.tiny, -info.tiny / 4, info.max, -info.max]
        odd += [float("inf"), -float("inf"), float("nan")]
        weight = torch.tensor(odd * 33, dtype=dtype)
        for a in (info.tiny / 8, 1e-3, 1e38, 1e300):
            check_sweep("gauss", weight.clone(), [Term(a, 7, 0.3)], random_mask(len(weight)))

    def test_memory_at_any_alignment(self) -> None:
        for dtype, shift in itertools.product(DTYPES, (1, 2, 3)):
            check_sweep("gauss8", weights(3000, dtype)[shift:-shift], TERMS["walk"])

    def test_parameters_and_shapes(self) -> None:
        weight = torch.nn.Parameter(weights(12 * 35, torch.float32).view(12, 35))
        expected = weight.data.clone()
        mask = random_mask(12 * 35).view(12, 35)
        native.sweep("gauss", weight.data, PID, TERMS["walk"], mask)
        with specification():
            backend.sweep_(expected, PID, TERMS["walk"], Source("gauss"), mask)
        assert_same_bits(weight.data, expected)
        assert native.handles("gauss", weight)
        assert native.handles("gauss", weight.data)

    def test_refuses_memory_it_must_not_touch(self) -> None:
        flat = torch.zeros(8, 8)
        assert not native.handles("gauss", flat.t()[1:])
        assert not native.handles("gauss", flat.to(torch.int32))
        assert not native.handles("gauss", flat.to("meta"))
        assert not native.handles("cauchy", flat)
        bad = (
            lambda: native.fill("gauss", flat.t()[1:], 1, 2),
            lambda: native.fill("gauss", flat.double(), 1, 2),
            lambda: native.sweep("gauss", flat.int(), 1, TERMS["move"]),
            lambda: native.sweep("gauss", flat, 1, TERMS["move"], torch.ones(63, dtype=torch.bool)),
            lambda: native.sweep("gauss", flat, 1, TERMS["move"], torch.ones(64)),
            lambda: native.sweep("gauss", flat, 1, TERMS["move"], kept={SEED: torch.ones(63)}),
            lambda: native.pair("gauss", flat, 1, 2, 0.1, None, flat, flat.clone()),
            lambda: native.pair("gauss", flat, 1, 2, 0.1, None, flat.clone(), flat[1:].clone()),
        )
        for call in bad:
            with pytest.raises(ValueError, match=r"expected a contiguous|share memory"):
                call()
        assert not flat.any()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_has_threads_of_its_own(self) -> None:
        torch.set_num_threads(2)
        out = torch.empty(jobs.PARALLEL_FROM)
        native.fill("rademacher", out, 1, 2)
        child = os.fork()
        if child == 0:
            again = torch.empty_like(out)
            native.fill("rademacher", again, 1, 2)
            os._exit(0 if bytes(again.numpy()) == bytes(out.numpy()) else 1)
        assert os.waitpid(child, 0)[1] == 0


def direction(kind: str) -> Direction:
    """z as the kernels may make it."""
    return Rademacher() if kind == "rademacher" else Gaussian(kind)


@needs_compiler
@pytest.mark.usefixtures("_built")
class TestMasksDecidedOnTheWay:
    """A limit on the weights' size gives what the mask it stands for gives, as bytes or bits."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("quantile", "below"), [(0.03, True), (0.2, True), (0.5, False)])
    def test_pair_and_sweep(self, kind, dtype, quantile, below) -> None:
        for size in (37, 4096, 9001):
            weight = weights(size, dtype)
            finite = weight[weight.isfinite()].abs().double()
            limit = Limit(float(finite.quantile(quantile)), below)
            mask, fast, plain = limit.of(weight), direction(kind), Source(kind)
            both = backend.pair(weight, PID, SEED, 1e-3, fast, limit)
            with specification():
                expected = backend.pair(weight, PID, SEED, 1e-3, plain, mask)
            for found, want in zip(both, expected, strict=True):
                assert_same_bits(found, want)
            for terms in (TERMS["walk"], TERMS["move"], TERMS["decay"], [Term(1e-3, SEED, 0.9)]):
                moved, same = weight.clone(), weight.clone()
                backend.sweep_(moved, PID, terms, fast, limit)
                with specification():
                    backend.sweep_(same, PID, terms, plain, mask)
                assert_same_bits(moved, same)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_new_mask_between_two_terms(self, dtype, packed) -> None:
        for kind, size in itertools.product(KINDS, (37, 9001)):
            weight, fast, plain = weights(size, dtype), direction(kind), Source(kind)
            limit = Limit(0.01, True)
            old = random_mask(size)
            before, after = [Term(0.02, 5), Term(-0.01, 6)], [Term(0.03, 7)]
            same = weight.clone()
            with specification():
                backend.sweep_(same, PID, before, plain, old)
                new = limit.of(same)
                backend.sweep_(same, PID, after, plain, new)
            held = pack_bits(old) if packed else old.clone()
            backend.resweep_(weight, PID, before, after, limit, held, fast)
            assert_same_bits(weight, same)
            assert torch.equal(unpack_bits(held, new.shape) if packed else held, new)
            backend.sweep_(weight, PID, after, fast, held)
            with specification():
                backend.sweep_(same, PID, after, plain, new)
            assert_same_bits(weight, same)
