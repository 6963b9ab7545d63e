"""AdamW with one second moment for a subset of weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zolab.baselines.first_order import FirstOrder, library, split_matrices


class AdamWSN(FirstOrder):
    """The subset-norm half of arXiv 2411.07120, AdamWSN of pytorch_optimizer.

    Matrices inside the layers share a second moment among `subset_size` neighbouring weights: the
    sum of their squared gradients. State: the first moment, and 1 / subset_size of a second one.

    Args:
        model: all its trainable parameters are trained.
        lr, beta1, beta2, weight_decay: as torch's AdamW; note that a sum over a subset, not a mean,
            stands in the denominator, so that rates are about sqrt(subset_size) times larger.
        subset_size: weights that share one number; -1: the largest divisor of the tensor's size up
            to its square root.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        subset_size: int = -1,
    ) -> None:
        inner, rest = split_matrices(model)
        groups: list[dict[str, Any]] = [{"params": inner, "sn": True}, {"params": rest}]
        optimizer = library("adamw_sn").AdamWSN(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=(beta1, beta2),
            weight_decay=weight_decay,
            subset_size=subset_size,
        )
        super().__init__(model, optimizer)

    def _restored(self, param: nn.Parameter, key: str, value: Tensor) -> Any:
        return int(value) if key == "subset_size" else super()._restored(param, key, value)
