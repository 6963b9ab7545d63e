"""Compositions of a large sweep, made by two processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

#: Fewer than this are composed as they are needed.
WORTH_IT = 16


def in_halves(
    make: Callable[[tuple[str, ...]], Any], wanted: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Any]:
    """What `make` makes of each combination, one half of them made by a forked process.

    Args:
        make: from a combination of overrides to its config; what it raises leaves that one out.
        wanted: the combinations.

    Returns:
        Configs by combination: none if there are few of them, one core, or other threads. Those
        left out are for the caller to make, or to find wrong.
    """
    alone = threading.active_count() == 1 and hasattr(os, "fork")
    if len(wanted) < WORTH_IT or not alone or _cores() < 2:
        return {}
    begin = time.monotonic()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            data = pickle.dumps(_made(make, wanted[1::2]))
            while data:
                data = data[os.write(write_end, data) :]
        finally:
            os._exit(0)  # nothing of the parent's is flushed or cleaned up twice
    os.close(write_end)
    try:
        found = _made(make, wanted[::2])
        # As long again as this half took, and no longer: the rest can be made here.
        deadline = 2 * time.monotonic() - begin + 1.0
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            found |= pickle.loads(_read(read_end, deadline))
        return found
    finally:
        os.close(read_end)
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _made(
    make: Callable[[tuple[str, ...]], Any], wanted: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Any]:
    found = {}
    for combination in wanted:
        with contextlib.suppress(Exception):  # made again, and told with its cell, by the caller
            found[combination] = make(combination)
    return found


def _read(pipe: int, deadline: float) -> bytes:
    """All that is written to a pipe; what came before the deadline if it is not closed by then."""
    pieces = []
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(pipe, 1 << 20)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)
