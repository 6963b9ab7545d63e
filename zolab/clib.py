"""Small C libraries that come as source: built where they are first used, and kept.

A library is kept in a cache under a name that holds everything it depends on: source, flags,
compiler and CPU. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_COMPILE_SECONDS = 300
_PROBE_SECONDS = 60


class BuildError(Exception):
    """No usable library; the message says why, in one line."""


@dataclass(frozen=True)
class Recipe:
    """How a library is made.

    Attributes:
        name: of the library in the cache.
        source: the file to compile.
        others: further files that it depends on, the probe among them.
        flags: for the compiler, always.
        tunings: more flags; the first of them that compile and run are taken.
        probe: a program that is given the library in a process of its own and fails if it cannot
            be used, because an illegal instruction kills the process that meets it; None where
            no tuning asks for any.
    """

    name: str
    source: Path
    others: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    tunings: tuple[tuple[str, ...], ...] = ((),)
    probe: Path | None = None


def library(recipe: Recipe) -> Path:
    """Path of a library that can be used on this CPU: from the cache, or built now.

    Raises:
        BuildError: no compiler, no place to write, or nothing that compiles and runs.
    """
    reasons: list[str] = []
    for compiler in _compilers():
        try:
            return _library_of(recipe, compiler)
        except (BuildError, OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{compiler[0]}: {error}")
    raise BuildError("; ".join(reasons) or "no C compiler found (looked for $CC, cc, gcc, clang)")


def cache_dir() -> Path:
    """Where libraries are kept: $ZOLAB_CACHE_DIR, else zolab/ in the user's cache."""
    if chosen := os.environ.get("ZOLAB_CACHE_DIR"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "zolab"
    try:
        return Path.home() / ".cache" / "zolab"
    except RuntimeError as error:
        raise BuildError(f"no cache directory: {error}") from None


def _compilers() -> list[list[str]]:
    """Compiler commands to try, the user's own choice first."""
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError:
        chosen = []
    found: dict[str, list[str]] = {}
    for command in (chosen, ["cc"], ["gcc"], ["clang"]):
        path = shutil.which(command[0]) if command else None
        if path is not None:
            found.setdefault(os.path.realpath(path), [path, *command[1:]])
    return list(found.values())


def _library_of(recipe: Recipe, compiler: list[str]) -> Path:
    version = _run([*compiler, "--version"], _PROBE_SECONDS)
    digest = hashlib.sha256()
    for path in (recipe.source, *recipe.others):
        digest.update(path.read_bytes())
    for text in (repr(recipe.flags), repr(recipe.tunings), repr(compiler), version, _cpu()):
        digest.update(text.encode() + b"\0")
    folder = cache_dir()
    target = folder / f"{recipe.name}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _build(recipe, compiler, target)
    return target


def _build(recipe: Recipe, compiler: list[str], target: Path) -> None:
    """Build and probe in a private folder, then move: a reader never sees half a library."""
    reason = ""
    with tempfile.TemporaryDirectory(
        prefix="build-", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        built = Path(folder) / target.name
        for tuning in recipe.tunings:
            try:
                flags = (*recipe.flags, *tuning, "-fPIC", "-shared")
                _run(
                    [*compiler, *flags, "-o", str(built), str(recipe.source), "-lm"],
                    _COMPILE_SECONDS,
                )
                if recipe.probe is not None:
                    probe = [sys.executable, "-I", "-S", str(recipe.probe), str(built)]
                    _run(probe, _PROBE_SECONDS)
            except (BuildError, subprocess.TimeoutExpired) as error:
                reason = str(error)
                continue
            os.replace(built, target)
            return
    raise BuildError(reason)


def _run(command: list[str], seconds: float) -> str:
    """Standard output of a command; BuildError if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise BuildError(f"{Path(command[0]).name} {_end(done.returncode)}{_complaint(done)}")
    return done.stdout


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a failed command's output that says most."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return f": {(errors or lines[-1:])[0]}" if lines else ""


def _cpu() -> str:
    """What -march=native depends on: a library from another machine's cache may not run here."""
    found = [platform.system(), platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key = line.split(":")[0].strip().lower()
                if key in ("model name", "cpu part"):
                    found.append(line.strip())
                if key in ("flags", "features", "isa"):
                    found.append(line.strip())
                    break
    except OSError:
        pass  # not Linux: the three names above have to do
    return "\n".join(found)
