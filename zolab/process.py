"""What this process is told by signals, and how much memory it holds. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Iterable, Iterator

#: Signals that ask a cell to save and stop, unless the launcher's config says otherwise: the usual
#: one, and the one that submitit asks SLURM to send before the time limit.
STOP_SIGNALS = ("SIGTERM", "SIGUSR2")
#: Environment of a launched cell: names of those signals, separated by commas.
SIGNALS_VARIABLE = "ZOLAB_STOP_SIGNALS"

#: Bytes of freed blocks, and of free memory in all, that are not given back to the system.
KEPT_BLOCK, KEPT_BYTES = 64 << 20, 256 << 20

_asked: str | None = None


class Preempted(Exception):
    """The cell was asked to stop, and stopped between two steps with everything saved."""


@contextlib.contextmanager
def stop_signals_caught(names: Iterable[str] | None = None) -> Iterator[None]:
    """Meanwhile these signals only set a flag, which `stop_asked` reads.

    A handler that saved by itself would do so in the middle of a step, when the weights may stand
    at θ + εz. Does nothing outside the main thread.

    Args:
        names: such as "SIGTERM"; None for those of the environment, or `STOP_SIGNALS`.
    """
    told = os.environ.get(SIGNALS_VARIABLE)
    before = {}
    for name in names or (told.split(",") if told else STOP_SIGNALS):
        number = signal.Signals[name]
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, _note)
    try:
        yield
    finally:
        ask_to_stop(None)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _note(number: int, frame: object) -> None:
    ask_to_stop(signal.Signals(number).name)


def ask_to_stop(reason: str | None) -> None:
    """Set the flag; None clears it."""
    global _asked
    _asked = reason


def stop_asked() -> str | None:
    """Why this process should stop at the next step, None if it should not."""
    return _asked


def resident_bytes() -> int | None:
    """Memory this process holds now; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def keep_freed_memory() -> bool:
    """Let the C library keep what a forward frees for the next one, which needs the same again.

    By default glibc gives it back at once, and the system must clear every page of it anew: a tenth
    of a float32 forward, and more where perturbed copies are made. Blocks beyond `KEPT_BLOCK` still
    go back, and of the free memory at the end of the heap what is beyond `KEPT_BYTES`.

    Returns:
        Whether it was done: not where the C library is another one, nor where the environment
        (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) says something.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(trim, KEPT_BYTES) and mallopt(mmap, KEPT_BLOCK))


def age_seconds() -> float | None:
    """How long ago this process was started; None where the system does not say."""
    try:
        with open("/proc/self/stat") as file, open("/proc/uptime") as up:
            ticks = int(file.read().rpartition(")")[2].split()[19])
            return float(up.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, CUDA's, or an allocation of torch."""
    words = ("can't allocate memory", "cannot allocate memory", "out of memory")
    named = type(error).__name__ == "OutOfMemoryError"
    said = isinstance(error, RuntimeError | OSError) and any(w in str(error).lower() for w in words)
    return isinstance(error, MemoryError) or named or said


def describe(error: BaseException) -> str:
    """One line for an error; one that is about memory says so, with the size of this process."""
    line = (f"{type(error).__name__}: {error}".strip().splitlines() or [""])[0]
    if not is_out_of_memory(error):
        return line
    size = resident_bytes()
    held = f", this process held {size / 2**20:.0f} MiB" if size else ""
    return f"out of memory{held} ({line[:300]})"
