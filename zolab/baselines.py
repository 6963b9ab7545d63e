"""What zeroth-order methods are compared with: back-propagation and no training at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zolab.objectives import BatchLoss
from zolab.optim import StepRecord
from zolab.tracking.schema import BACKPROP_FORWARDS


class AdamW:
    """torch's AdamW with back-propagation; each step counts `BACKPROP_FORWARDS` forwards.

    Args:
        model: all its trainable parameters are trained.
        lr, beta1, beta2, weight_decay: as torch's AdamW.
    """

    trains = True
    journaled = False
    calibrate = 0

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        self._names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay
        )
        self.param_groups = self._optimizer.param_groups
        self.last: StepRecord | None = None
        self.num_steps = 0

    def step(self, closure: BatchLoss) -> float:
        loss = closure.backward()
        if torch.isfinite(torch.tensor(loss)):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        finite = () if loss == loss and abs(loss) != float("inf") else None
        lr = self.param_groups[0]["lr"]
        self.last = StepRecord(self.num_steps, lr, (loss,), finite, loss, BACKPROP_FORWARDS)
        return loss

    def flush(self) -> None:
        """Weights are always clean."""

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        """Not needed: a step sees its own batch only."""

    def tensors(self) -> dict[str, Tensor]:
        out = {}
        for param, state in self._optimizer.state.items():
            for key, value in state.items():
                out[f"{self._names[id(param)]}:{key}"] = torch.as_tensor(value)
        return out

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        self.num_steps = step
        by_name = {self._names[id(p)]: p for g in self.param_groups for p in g["params"]}
        state: dict[nn.Parameter, dict[str, Any]] = {}
        for name, value in tensors.items():
            owner, key = name.rsplit(":", 1)
            # torch keeps its step counter on the CPU and everything else beside the weights.
            device = "cpu" if key == "step" else by_name[owner].device
            state.setdefault(by_name[owner], {})[key] = value.to(device)
        self._optimizer.state.update(state)


class ZeroShot:
    """The model as it is.

    Args:
        model: not changed.
        calibrate: subtract each label word's mean log-probability over training prompts.
        num_calibration: training prompts used for that, labels unseen.
    """

    trains = False
    journaled = False
    last = None
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
