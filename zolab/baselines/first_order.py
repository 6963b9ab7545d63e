"""Back-propagation as the training loop sees it: torch's AdamW and SGD, and what others build on.

First-order runs keep no journal. They resume from a checkpoint of weights and state, and what they
do after it is the same to the bit as if they had never stopped.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zolab.errors import UserError
from zolab.learner import Plain
from zolab.objectives import BatchLoss
from zolab.optim import StepRecord
from zolab.optim.masks import layer_of
from zolab.optim.parameters import canonical_name
from zolab.tracking.schema import BACKPROP_FORWARDS


class FirstOrder(Plain):
    """A torch optimizer under the loop; each step counts `BACKPROP_FORWARDS` forwards.

    A step whose loss is not finite changes nothing and is counted.

    Args:
        model: its trainable parameters are trained.
        optimizer: over those parameters.
    """

    trains = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.facts = {}
        self._names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
        self._optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.last: StepRecord | None = None
        self.num_steps = 0

    def step(self, closure: BatchLoss) -> float:
        """One step on one mini-batch: loss, gradient, update; the loss."""
        loss = self._backward(closure)
        finite = math.isfinite(loss)
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._count(loss, finite)
        return loss

    def _backward(self, closure: BatchLoss) -> float:
        """Gradients into `param.grad`; a loss that is not finite leaves them incomplete."""
        return closure.backward()

    def _count(self, loss: float, finite: bool) -> None:
        self.num_steps += 1
        lr = self.param_groups[0]["lr"]
        moved = () if finite else None
        self.last = StepRecord(self.num_steps, lr, (loss,), moved, loss, BACKPROP_FORWARDS)

    def tensors(self) -> dict[str, Tensor]:
        """State by "parameter:key", and "group.N:step" where an optimizer counts by group."""
        out = {}
        for param, state in self._optimizer.state.items():
            for key, value in state.items():
                out[f"{self._names[id(param)]}:{key}"] = torch.as_tensor(value)
        return out | self._group_steps()

    def _group_steps(self) -> dict[str, Tensor]:
        counted = ((i, g["step"]) for i, g in enumerate(self.param_groups) if "step" in g)
        return {f"group.{i}:step": torch.tensor(step) for i, step in counted}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave after `step` steps."""
        self.num_steps = step
        by_name = {self._names[id(p)]: p for group in self.param_groups for p in group["params"]}
        for name, value in tensors.items():
            owner, key = name.rsplit(":", 1)
            if owner in by_name:
                param = by_name[owner]
                self._optimizer.state[param][key] = self._restored(param, key, value)
            else:
                self.param_groups[int(owner.removeprefix("group."))][key] = int(value)

    def _restored(self, param: nn.Parameter, key: str, value: Tensor) -> Any:
        """One piece of state as the optimizer keeps it: single numbers as it made them."""
        # torch keeps its step counter on the CPU and everything else beside the weights.
        return value if key == "step" else value.to(param.device)


class AdamW(FirstOrder):
    """torch's AdamW (arXiv 1711.05101).

    Args:
        model: all its trainable parameters are trained.
        lr, beta1, beta2, weight_decay: as torch's AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        optimizer = torch.optim.AdamW(
            trainable(model), lr=lr, betas=(beta1, beta2), weight_decay=weight_decay
        )
        super().__init__(model, optimizer)


class SGD(FirstOrder):
    """torch's SGD: w <- w - lr b, b <- momentum b + g + weight_decay w.

    Args:
        model: all its trainable parameters are trained.
        lr, momentum, weight_decay: as torch's SGD; without momentum there is no state.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        optimizer = torch.optim.SGD(
            trainable(model), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        super().__init__(model, optimizer)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are trained, tied ones once."""
    return [p for p in model.parameters() if p.requires_grad]


def split_matrices(
    model: nn.Module, smallest: int = 2
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters in two lists: matrices inside the layers, and all the rest.

    Args:
        model: names with a number in them belong to a layer.
        smallest: a matrix with a side shorter than this goes with the rest.
    """
    inner, rest = [], []
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_inner = layer_of(canonical_name(name)) is not None and param.dim() == 2
            (inner if is_inner and min(param.shape) >= smallest else rest).append(param)
    return inner, rest


def library(optimizer: str) -> ModuleType:
    """The package pytorch_optimizer.

    Args:
        optimizer: name of the choice that needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("pytorch_optimizer")
    except ImportError as error:
        raise UserError(
            f"optimizer = {optimizer}: needs the package pytorch_optimizer ({error}); "
            "install zolab[baselines]"
        ) from error
