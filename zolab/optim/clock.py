"""Where the time of a step goes, beside the model's own work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds of this process spent so far beside the model's own work.

    On a GPU kernels are only put in line, and nothing waits for the clock's sake: what they take
    shows where a loss is waited for.

    Attributes:
        perturb: making perturbed weights, in place or within a forward; of the in-place walk in two
            sweeps also the update that waits for its first.
        update: applying updates.
        transfer: copies between tiers of memory.
    """

    perturb: float = 0.0
    update: float = 0.0
    transfer: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.perturb + self.update + self.transfer

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Whatever is done inside is an update, and counts once."""
        begin, perturb, update = time.perf_counter(), self.perturb, self.update
        try:
            yield
        finally:
            self.perturb, self.update = perturb, update + time.perf_counter() - begin
