"""Streams that check, instead of running in parallel: every two uses of a buffer are ordered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from zolab.optim.offload.streams import COMPUTE, DOWNLOAD, UPLOAD, Streams

Clock = dict[str, int]


class Checking(Streams):
    """Lanes with vector clocks: what a lane knows to be over, by lane.

    The host is a lane of its own: it knows what it synchronised with, and everything it starts
    comes after what it did before.
    """

    def __init__(self) -> None:
        self.clocks: dict[str, Clock] = {lane: {} for lane in (UPLOAD, COMPUTE, DOWNLOAD, "host")}
        self.counts = dict.fromkeys(self.clocks, 0)
        self.written: dict[Hashable, tuple[str, int]] = {}
        self.read: dict[Hashable, dict[str, int]] = {}
        self.faults: list[str] = []
        self.pieces = 0

    def run(
        self,
        lane: str,
        work: Callable[[], object],
        reads: Sequence[Hashable] = (),
        writes: Sequence[Hashable] = (),
    ) -> None:
        self.pieces += 1
        self._know(lane, self.clocks["host"])  # the host started it after what it has seen
        self.counts[lane] += 1
        self.clocks[lane][lane] = self.counts[lane]
        for buffer in (*reads, *writes):
            self._after(lane, buffer, [self.written.get(buffer)], "is still being written")
        for buffer in writes:
            readers = self.read.get(buffer, {})
            self._after(lane, buffer, list(readers.items()), "is still being read")
            self.written[buffer] = (lane, self.counts[lane])
            self.read[buffer] = {}
        for buffer in reads:
            self.read.setdefault(buffer, {})[lane] = self.counts[lane]
        work()

    def mark(self, lane: str) -> Clock:
        return dict(self.clocks[lane])

    def wait(self, lane: str, mark: Clock | None) -> None:
        self._know(lane, mark or {})

    def sync(self, mark: Clock | None) -> None:
        self._know("host", mark or {})

    def _know(self, lane: str, clock: Clock) -> None:
        mine = self.clocks[lane]
        for other, count in clock.items():
            mine[other] = max(mine.get(other, 0), count)

    def _after(self, lane: str, buffer: Hashable, uses: list, what: str) -> None:
        for use in uses:
            if use is not None and self.clocks[lane].get(use[0], 0) < use[1]:
                self.faults.append(f"{lane}: {buffer} {what} by {use[0]}")
