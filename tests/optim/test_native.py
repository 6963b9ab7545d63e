"""The native kernels against their specification, and what happens where they cannot be built."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zolab.optim import backend, native
from zolab.optim.backend import Term
from zolab.optim.native import build, probe
from zolab.optim.noise import NOISES

KINDS = tuple(NOISES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED, PID = 0xFEDCBA9876543210, 3
INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler here"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(autouse=True)
def _fresh(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test finds an empty process state and one cache of this module."""
    monkeypatch.setenv("ZOLAB_CACHE_DIR", str(cache))
    monkeypatch.delenv("ZOLAB_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    native._forget()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    native._forget()


@pytest.fixture
def _built() -> None:
    assert native.available(), native._failure


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


class Source:
    """z by the definition of the noise, counter by counter."""

    kind = None  # nothing that a faster backend could make

    def __init__(self, kind: str) -> None:
        self.noise = NOISES[kind]()

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        per = self.noise.per_block
        first, last = offset // per, (offset + count - 1) // per + 1
        values = self.noise.blocks(torch.arange(first, last), seed, pid).view(-1)
        return values[offset - first * per :][:count]

    def stored(self, *_: object) -> None:
        return None


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
        size = native.PARALLEL_FROM + 12345
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
        out = torch.empty(native.PARALLEL_FROM)
        native.fill("rademacher", out, 1, 2)
        child = os.fork()
        if child == 0:
            again = torch.empty_like(out)
            native.fill("rademacher", again, 1, 2)
            os._exit(0 if bytes(again.numpy()) == bytes(out.numpy()) else 1)
        assert os.waitpid(child, 0)[1] == 0


class TestBuild:
    def refused(self, caplog: pytest.LogCaptureFixture) -> str:
        """The one warning, after seeing that nothing else breaks."""
        caplog.set_level(logging.WARNING)
        out = torch.zeros(300)
        assert not native.available()
        assert not native.available()
        assert not native.handles("gauss", out)
        with pytest.raises(RuntimeError, match="not available"):
            native.fill("gauss", out, 1, 2)
        NOISES["gauss"]().fill(out, 1, 2)
        assert out.std() > 0.5
        (record,) = (r for r in caplog.records if r.name == native.__name__)
        return record.getMessage()

    def fake_compiler(self, folder: Path, script: str) -> None:
        path = folder / "cc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def test_no_compiler(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "no C compiler found" in self.refused(caplog)

    def test_compiler_that_does_not_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.fake_compiler(tmp_path, "echo licence server is down >&2; exit 1")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "cc ended with status 1: licence server is down" in self.refused(caplog)

    def test_compiler_that_fails(
        self,
        cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        script = '[ "$1" = --version ] && exit 0\necho "a.c:1: error: no" >&2; echo end >&2; exit 4'
        self.fake_compiler(tmp_path, script)
        monkeypatch.setenv("PATH", str(tmp_path))
        before = set(cache.iterdir())
        assert "cc ended with status 4: a.c:1: error: no" in self.refused(caplog)
        assert set(cache.iterdir()) == before, "a failed build leaves nothing behind"

    def test_compiler_that_makes_no_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = 'for last; do [ "$before" = -o ] && out=$last; before=$last; done\necho > "$out"'
        self.fake_compiler(tmp_path, f'[ "$1" = --version ] && exit 0\n{script}')
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "python" in self.refused(caplog)

    @needs_compiler
    @pytest.mark.parametrize("tuning", build._TUNINGS[1:], ids=str)
    def test_fallback_flags_give_the_same_bits(
        self, tuning: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The first flags are what a compiler that does not know them leaves out.
        monkeypatch.setattr(build, "_TUNINGS", (("-mno-such-thing",), tuning))
        assert native.available(), native._failure
        for kind, dtype in itertools.product(KINDS, DTYPES):
            check_sweep(kind, weights(5000, dtype), TERMS["stochastic"], random_mask(5000))

    @needs_compiler
    def test_illegal_instruction(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        deadly = tmp_path / "kernels.c"
        deadly.write_text("__attribute__((constructor)) void f(void) { __builtin_trap(); }\n")
        monkeypatch.setattr(build, "SOURCE", deadly)
        monkeypatch.setattr(build, "_INPUTS", (deadly,))
        assert "was killed by SIG" in self.refused(caplog)

    @needs_compiler
    def test_other_bits_than_the_specification(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        here = tmp_path / "native"
        shutil.copytree(build.SOURCE.parent, here)
        noise = here / "noise.h"
        noise.write_text(noise.read_text().replace("1.57079632679", "1.57079532679"))
        monkeypatch.setattr(build, "SOURCE", here / "kernels.c")
        monkeypatch.setattr(build, "_INPUTS", (here / "kernels.c", noise))
        assert "does not make the bits of gauss" in self.refused(caplog)

    @needs_compiler
    def test_nowhere_to_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("ZOLAB_CACHE_DIR", str(tmp_path / "file" / "cache"))
        assert "Not a directory" in self.refused(caplog)

    def test_turned_off(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("ZOLAB_NATIVE", "0")
        assert not native.available()
        with pytest.raises(RuntimeError, match="ZOLAB_NATIVE=0"):
            native.fill("gauss", torch.zeros(3), 1, 2)
        assert not caplog.records

    @needs_compiler
    def test_users_own_compiler_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "sh -c")
        commands = build._compilers()
        assert commands[0] == [shutil.which("sh"), "-c"]
        assert len(commands) > 1
        monkeypatch.setenv("CC", "no-such-compiler 'half a quote")
        assert build._compilers() == commands[1:]

    @needs_compiler
    def test_builders_at_the_same_time(self, tmp_path: Path) -> None:
        # Without torch, to be quick: the package's __init__ is not needed to build.
        code = (
            "import importlib.util, sys; "
            f"spec = importlib.util.spec_from_file_location('build', {build.__file__!r}); "
            "build = importlib.util.module_from_spec(spec); spec.loader.exec_module(build); "
            "print(build.library())"
        )
        environment = {**os.environ, "ZOLAB_CACHE_DIR": str(tmp_path / "new" / "cache")}
        command = [sys.executable, "-I", "-c", code]
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        found = {process.communicate(timeout=120)[0].strip() for process in running}
        assert [process.returncode for process in running] == [0] * 4
        (path,) = found
        assert [str(p) for p in (tmp_path / "new" / "cache").iterdir()] == [path]
        assert probe.main(path) == 0

    @needs_compiler
    def test_second_use_compiles_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = build.library()
        stamp = first.stat().st_mtime_ns
        monkeypatch.setattr(build, "_build", None)
        assert build.library() == first
        assert first.stat().st_mtime_ns == stamp
