"""Updates inside the backward pass: a gradient is used and dropped before the next one is made."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zolab.baselines.first_order import FirstOrder, library
from zolab.objectives import BatchLoss


class Fused(FirstOrder):
    """An optimizer of pytorch_optimizer that moves each tensor as soon as its gradient is there.

    The backward pass *is* the update, so a step takes its batch in one piece.
    """

    def step(self, closure: BatchLoss) -> float:
        """Loss, then backward with the updates in it; a loss that is not finite moves nothing."""
        if len(closure.batches) > 1:
            raise ValueError(
                f"{type(self).__name__} updates during backward and cannot add up the gradients of "
                f"{len(closure.batches)} micro-batches"
            )
        self._optimizer.lr = self.param_groups[0]["lr"]
        loss = self._backward(closure)
        self._count(loss, math.isfinite(loss))
        return loss


class LOMO(Fused):
    """LOMO (arXiv 2306.09782), of pytorch_optimizer: SGD within backward; no state.

    Args:
        model: all its trainable parameters are trained, in float32 or bfloat16.
        lr: step size.
        clip_value: bound on each gradient entry; None for none. (Clipping by the norm of the whole
            gradient would take a second backward pass.)
    """

    def __init__(self, model: nn.Module, lr: float = 1e-2, clip_value: float | None = None) -> None:
        optimizer = library("lomo").LOMO(model, lr=lr, clip_grad_value=clip_value)
        super().__init__(model, optimizer)


class AdaLOMO(Fused):
    """AdaLomo (arXiv 2310.10195), of pytorch_optimizer; state: a row and a column a matrix.

    The second moment is factored as in Adafactor, the update bounded by its root mean square and
    scaled by that of the weights.

    Args:
        model: all its trainable parameters are trained, in float32 or bfloat16.
        lr: step size relative to the root mean square of each tensor.
        weight_decay: decoupled.
    """

    def __init__(self, model: nn.Module, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        # The scaling of the loss is for float16 alone, and not offered.
        optimizer = library("adalomo").AdaLOMO(
            model, lr=lr, weight_decay=weight_decay, loss_scale=0.0
        )
        super().__init__(model, optimizer)

    def _backward(self, closure: BatchLoss) -> float:
        optimizer = self._optimizer
        optimizer.num_steps += 1
        loss = closure.backward()
        if math.isfinite(loss):
            optimizer.grad_func(None)  # the tensors whose gradients came last
        else:
            optimizer.num_steps -= 1
        return loss

    def tensors(self) -> dict[str, Tensor]:
        out = {"num_steps": torch.tensor(self._optimizer.num_steps)}
        for kind in _MOMENTS:
            out |= {f"{kind}:{n}": value for n, value in getattr(self._optimizer, kind).items()}
        return out

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        self.num_steps = step
        self._optimizer.num_steps = int(tensors["num_steps"])
        for name, value in tensors.items():
            kind, _, owner = name.partition(":")
            if kind in _MOMENTS:
                getattr(self._optimizer, kind)[owner].copy_(value)


_MOMENTS = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")
