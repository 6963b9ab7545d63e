"""The last steps as seeds and scalars: what a rule needs to make its moments anew."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from zolab.optim.directions import Direction
from zolab.optim.engine import Update
from zolab.optim.masks import Dense
from zolab.optim.rules.sgd import Rule

HISTORIES = ("stored", "replayed")
#: A moment may forget a step once its weight beta**window is below this.
NEGLIGIBLE = 1e-3


class History:
    """The last `window` updates, newest first (MeZO, arXiv 2305.17333).

    Args:
        window: steps to keep; None for the fewest after which the slowest moment has forgotten.
        beta: decay of the slowest moment, 0 <= beta < 1.

    Raises:
        ValueError: the window ends where steps still count.
    """

    def __init__(self, window: int | None, beta: float) -> None:
        needed = 1 if beta == 0.0 else math.ceil(math.log(NEGLIGIBLE) / math.log(beta))
        if window is not None and window < needed:
            raise ValueError(
                f"rule.window = {window}: beta**window = {beta**window:.2g} is not negligible; "
                f"history=replayed with beta = {beta:g} needs at least {needed}"
            )
        self.window = window or needed
        self._updates: deque[Update] = deque(maxlen=self.window)

    def __len__(self) -> int:
        return len(self._updates)

    def __iter__(self) -> Iterator[Update]:
        return reversed(self._updates)

    def note(self, update: Update) -> None:
        """Remember a step."""
        self._updates.append(update)

    def state(self) -> dict[str, Tensor]:
        """The scalars as tensors: one entry a step for seeds, slopes and eps."""
        out = {}
        for i, update in enumerate(self._updates):
            # Seeds are unsigned 64-bit numbers, tensors signed ones.
            seeds = [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in update.seeds]
            out[f"{i:06d}.seeds"] = torch.tensor([update.step, *seeds], dtype=torch.int64)
            values = [*update.slopes, *update.eps]
            out[f"{i:06d}.values"] = torch.tensor(values, dtype=torch.float64)
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._updates.clear()
        for key in sorted(k for k in state if k.endswith(".seeds")):
            step, *seeds = state[key].tolist()
            values = state[key.replace("seeds", "values")].tolist()
            n = len(seeds)
            seeds = tuple(seed % (1 << 64) for seed in seeds)
            nothing = (0.0,) * (len(values) - n)
            self._updates.append(
                Update(step, seeds, tuple(values[:n]), nothing, tuple(values[n:]), nothing)
            )


class Replayable(Rule):
    """A rule whose moments are stored, or made anew from the last steps.

    Args:
        history: "stored" or "replayed".
        window: steps that replayed moments reach back; None for the fewest that count.
        beta: decay of the slowest moment.

    Raises:
        ValueError: another history, or a window in which moments still count; and from the checks,
            a direction or mask whose old values cannot be made again.
    """

    def __init__(self, history: str, window: int | None, beta: float) -> None:
        if history not in HISTORIES:
            raise ValueError(f"rule.history = {history!r}: expected one of {', '.join(HISTORIES)}")
        self.history = history
        self.window = window
        self._past = History(window, beta) if history == "replayed" else None
        self.reach = 1 if self._past is None else self._past.window

    def check(self, direction: Direction) -> None:
        if self._past is not None and direction.kind is None:
            raise ValueError(
                f"rule.history = 'replayed': the z of a {type(direction).__name__} direction is "
                "not a function of its seed alone, so moments cannot be made anew from seeds"
            )

    def check_mask(self, mask: Dense) -> None:
        if self._past is not None and not mask.static:
            raise ValueError(
                f"rule.history = 'replayed': the {type(mask).__name__} mask changes as the run "
                "goes on, and the masks of old steps are not kept"
            )

    def note(self, update: Update) -> None:
        if self._past is not None:
            self._past.note(update)
