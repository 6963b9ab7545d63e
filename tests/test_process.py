"""What a process asks of the C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Three blocks taken, written and freed, again and again, as the activations of forwards are.
ROUNDS = """
import ctypes, resource
from zolab.process import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
done = {ask} and keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(20):
    if number == 5:
        begin = faults()
    blocks = [libc.malloc(12 << 20) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 12 << 20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
print(done, faults() - begin)
"""


def rounds(ask: bool, **more: str) -> tuple[bool, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS.format(ask=ask)],
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_forward() -> None:
    plain, kept = rounds(ask=False), rounds(ask=True)
    assert plain[1] > 1000  # pages that the system must clear anew
    assert kept[0]
    assert kept[1] < 50


def test_what_the_environment_says_stands() -> None:
    assert rounds(ask=True, MALLOC_TRIM_THRESHOLD_="131072")[0] is False
