"""Three lanes of work: upload, compute, download; ordered by marks, never by stopping the device.

The same calls drive CUDA streams and events and, on a CPU, nothing at all: work runs where it is
written. Each piece of work says which buffers it reads and writes, so that tests can check that
marks order every two uses of a buffer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from zolab.optim.clock import Clock

UPLOAD, COMPUTE, DOWNLOAD = "upload", "compute", "download"


class Streams:
    """Work runs at once and in the order it is written: for a CPU, and the base of the others.

    Attributes:
        clock: gets the time of copies, or of waiting for them; None for none.
    """

    clock: Clock | None = None

    def run(
        self,
        lane: str,
        work: Callable[[], object],
        reads: Sequence[Hashable] = (),
        writes: Sequence[Hashable] = (),
    ) -> None:
        """Put work on a lane.

        Args:
            lane: upload, compute or download.
            work: what to do; returns at once where the lane is a stream.
            reads: names of the buffers it reads.
            writes: names of the buffers it writes.
        """
        begin = time.perf_counter()
        work()
        if self.clock is not None and lane != COMPUTE:
            self.clock.transfer += time.perf_counter() - begin

    def mark(self, lane: str) -> Any:
        """A point in a lane, after everything put on it so far."""
        return None

    def wait(self, lane: str, mark: Any) -> None:
        """What is put on a lane from now on starts after `mark`; None is no mark."""

    def sync(self, mark: Any) -> None:
        """This process goes on after `mark`; None is no mark."""


class CudaStreams(Streams):
    """Two streams beside the current one, for copies; marks are events.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = {lane: torch.cuda.Stream(device) for lane in (UPLOAD, DOWNLOAD)}

    def _of(self, lane: str) -> torch.cuda.Stream:
        return self._side.get(lane) or torch.cuda.current_stream(self.device)

    def run(
        self,
        lane: str,
        work: Callable[[], object],
        reads: Sequence[Hashable] = (),
        writes: Sequence[Hashable] = (),
    ) -> None:
        with torch.cuda.stream(self._of(lane)):
            work()

    def mark(self, lane: str) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._of(lane))
        return event

    def wait(self, lane: str, mark: torch.cuda.Event | None) -> None:
        if mark is not None:
            self._of(lane).wait_event(mark)

    def sync(self, mark: torch.cuda.Event | None) -> None:
        if mark is not None:
            begin = time.perf_counter()
            mark.synchronize()
            if self.clock is not None:
                self.clock.transfer += time.perf_counter() - begin


def streams_for(device: torch.device) -> Streams:
    """The lanes of a device."""
    return CudaStreams(device) if device.type == "cuda" else Streams()
