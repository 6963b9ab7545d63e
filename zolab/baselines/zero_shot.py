"""No training at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from zolab.objectives import BatchLoss
from zolab.optim import StepRecord


class ZeroShot:
    """The model as it is.

    Args:
        model: not changed.
        calibrate: subtract each label word's mean log-probability over training prompts.
        num_calibration: training prompts used for that, labels unseen.
    """

    trains = False
    journaled = False
    last: StepRecord | None = None
    num_steps = 0

    def __init__(
        self, model: nn.Module, calibrate: bool = False, num_calibration: int = 200
    ) -> None:
        self.calibrate = num_calibration if calibrate else 0
        self.param_groups: list[dict[str, Any]] = []

    def step(self, closure: BatchLoss) -> float:
        raise RuntimeError("zero-shot takes no steps")

    def flush(self) -> None:
        """Nothing moves."""

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        """Not needed: nothing is trained."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Nothing to load."""
