"""Peak memory of taking steps, apart from that of loading and evaluating."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch
from torch import nn

from zolab.process import resident_bytes

STEPS, EVALUATION = "steps", "evaluation"


class PeakMemory:
    """Highest memory of each kind of work, from counters that miss nothing between two looks.

    On CUDA it is what torch's allocator handed out. On the CPU it is the resident size of the
    process (VmHWM, which Linux lets a process reset), and `base` is what that was before training
    without the weights: the interpreter and its libraries.

    Args:
        model: ready to train; its parameters count as part of every peak.
        device: where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._peaks: dict[str, int] = {}
        self.base = 0
        gc.collect()
        # Libraries and model stay: without them a collection takes a millisecond, not half a second
        gc.freeze()
        self._reset()
        if device.type != "cuda":
            weights = {id(p): p.numel() * p.element_size() for p in model.parameters()}
            resident = resident_bytes() or largest_resident()
            self.base = max(0, resident - sum(weights.values()))

    def lap(self, kind: str) -> None:
        """All since the last lap was work of this kind."""
        self._peaks[kind] = max(self._peaks.get(kind, 0), peak_bytes(self._device))
        self._reset()

    def close(self) -> None:
        """Let go of what was kept from garbage collection; the peaks stay."""
        gc.unfreeze()

    def peak(self, kind: str) -> int:
        """Highest memory of this kind of work in bytes; 0 if there was none."""
        return self._peaks.get(kind, 0)

    def _reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        # The oldest generation holds all of every import: a third of a second to walk.
        gc.collect(1)
        with contextlib.suppress(OSError, AttributeError):
            # malloc keeps what was freed, and an evaluation's batches are larger than a step's.
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak since the last reset: of the CUDA allocator, or resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _high_water() or largest_resident()


def largest_resident() -> int:
    """Largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _high_water() -> int:
    """VmHWM of /proc/self/status in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
