"""Building the native kernels, and what happens where they cannot be built."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.optim.native.parts import (
    DTYPES,
    KINDS,
    PID,
    TERMS,
    assert_same_bits,
    check_sweep,
    needs_compiler,
    random_mask,
    specification,
    weights,
)
from zolab import clib
from zolab.optim import native
from zolab.optim.bits import Places
from zolab.optim.native import build, probe
from zolab.optim.noise import NOISES
from zolab.optim.products import sweep_


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
            few = torch.arange(5000) % 37 == 3
            found, expected = weights(5000, dtype), weights(5000, dtype)
            native.sweep(kind, found, PID, TERMS["stochastic"], Places.of(few))
            native.sweep(kind, expected, PID, TERMS["stochastic"], few)
            assert_same_bits(found, expected)
        factors = torch.arange(27.0).view(9, 3) / 8, torch.arange(123.0).view(3, 41) / -8
        both = {term.seed: factors for term in TERMS["stochastic"]}
        for dtype in DTYPES:
            found, expected = (weights(369, dtype).view(9, 41) for _ in range(2))
            sweep_(found, PID, TERMS["stochastic"], both)
            with specification():
                sweep_(expected, PID, TERMS["stochastic"], both)
            assert_same_bits(found, expected)

    @needs_compiler
    def test_illegal_instruction(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        deadly = tmp_path / "kernels.c"
        deadly.write_text("__attribute__((constructor)) void f(void) { __builtin_trap(); }\n")
        monkeypatch.setattr(build, "SOURCE", deadly)
        monkeypatch.setattr(build, "_HEADERS", ())
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
        monkeypatch.setattr(build, "_HEADERS", (noise,))
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

    def test_what_the_kernels_are_not_for_is_told_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        native._tell_once.cache_clear()
        for weight in (torch.ones(8, dtype=torch.float8_e5m2), torch.ones(8, device="meta")):
            assert not native.handles("gauss", weight)
            assert not native.handles("gauss8", weight)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert "torch.float8_e5m2 on cpu goes by plain torch" in told[0]
        assert "torch.float32 on meta" in told[1]

    @needs_compiler
    def test_users_own_compiler_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "sh -c")
        commands = clib._compilers()
        assert commands[0] == [shutil.which("sh"), "-c"]
        assert len(commands) > 1
        monkeypatch.setenv("CC", "no-such-compiler 'half a quote")
        assert clib._compilers() == commands[1:]

    @needs_compiler
    def test_builders_at_the_same_time(self, tmp_path: Path) -> None:
        # Without torch, to be quick: the package's __init__ is not needed to build.
        code = (
            f"import sys; sys.path.insert(0, {str(Path(clib.__file__).parents[1])!r}); "
            "import importlib.util; "
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
        monkeypatch.setattr(clib, "_build", None)
        assert build.library() == first
        assert first.stat().st_mtime_ns == stamp


def test_a_change_in_every_header_makes_another_library() -> None:
    sources = [build.SOURCE, *build._HEADERS]
    included = {
        name for path in sources for name in re.findall(r'#include "(.+)"', path.read_text())
    }
    assert included == {path.name for path in build._HEADERS}
