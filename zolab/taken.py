"""Steps whose losses have not been looked at yet."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence

from zolab.job import Job
from zolab.optim import StepRecord
from zolab.optim.late import Unread


class Taken:
    """Steps in the order they were taken; each is looked at `lag` steps later.

    Args:
        lag: how many steps may be under way before the host waits for the oldest of them.
        note: called with the record of each step and the indices of its examples, in order.
    """

    def __init__(self, lag: int, note: Callable[[StepRecord, Sequence[int]], None]) -> None:
        self.lag = lag
        self._note = note
        self._waiting: deque[tuple[StepRecord | Unread, Sequence[int]]] = deque()

    def put(self, taken: StepRecord | Unread, indices: Sequence[int]) -> None:
        """A step was taken, or put in line on its device."""
        self._waiting.append((taken, indices))
        self.read(self.lag)

    def read(self, left: int = 0) -> None:
        """Look at steps until only so many are left; by default at all."""
        while len(self._waiting) > left:
            taken, indices = self._waiting.popleft()
            self._note(taken.read(), indices)


def lag_of(job: Job) -> int:
    """`train.lag` where losses may be late; else 0, with a warning that says what needs them."""
    lag = job.settings["lag"]
    why = job.learner.waits_for if job.ranks is None else "the mean over several processes"
    if not (lag and job.learner.trains) or why is None:
        return lag
    warnings.warn(
        f"train.lag = {lag}: losses are read in their own step, since {why} needs them there",
        RuntimeWarning,
        stacklevel=2,
    )
    return 0
