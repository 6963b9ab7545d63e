"""What the training loop asks of an optimizer, zeroth-order or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from zolab.objectives import BatchLoss
from zolab.optim import MeZOSVRG, StepRecord, ZeroOrder


class Learner(Protocol):
    """One method of training.

    Attributes:
        trains: False for methods that only evaluate; the loop then takes no step.
        journaled: True when a step is a journal row; else a resume needs a checkpoint.
        param_groups: as torch optimizers have them; the loop sets "lr".
        last: record of the last step.
        num_steps: steps taken.
        calibrate: training rows to calibrate label words with, 0 for none.
    """

    trains: bool
    journaled: bool
    param_groups: list[dict[str, Any]]
    last: StepRecord | None
    num_steps: int
    calibrate: int

    def step(self, closure: BatchLoss) -> float:
        """One step on one mini-batch; the loss to report."""

    def flush(self) -> None:
        """Make the weights clean."""

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        """Batches of the whole training set, for methods that look at all of it."""

    def tensors(self) -> dict[str, Tensor]:
        """State to save beside the weights."""

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave after `step` steps."""


class ZerothOrderLearner:
    """A `ZeroOrder` optimizer as the loop sees it."""

    trains = True
    journaled = True
    calibrate = 0

    def __init__(self, optimizer: ZeroOrder) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    @property
    def last(self) -> StepRecord | None:
        return self.optimizer.last

    @property
    def num_steps(self) -> int:
        return self.optimizer.num_steps

    def step(self, closure: BatchLoss) -> float:
        return self.optimizer.step(closure)

    def flush(self) -> None:
        self.optimizer.flush()

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        if isinstance(self.optimizer, MeZOSVRG):
            self.optimizer.full_batch = batches

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        self.optimizer.load_tensors(tensors, step)
