"""AdamW whose moments live in a low-rank projection of the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zolab.baselines.first_order import FirstOrder, library, split_matrices
from zolab.objectives import BatchLoss

#: APOLLO: how much the norm of a scaled gradient may grow from one step to the next.
MAX_GROWTH = 1.01
_PRIME = 1_000_003


class GaLore(FirstOrder):
    """GaLore (arXiv 2403.03507), of pytorch_optimizer: moments in the span of singular vectors.

    A matrix inside the layers is projected on the `rank` first singular vectors of its gradient,
    taken anew every `update_every` steps; all else is plain AdamW. State of an m x n matrix,
    m <= n: m rank + 2 n rank.

    Args:
        model: all its trainable parameters are trained.
        lr, beta1, beta2, weight_decay: as torch's AdamW.
        rank: directions kept; matrices with a side no longer than that are not projected.
        update_every: steps between projections.
        scale: factor of the projected update (alpha of the paper).
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        rank: int = 8,
        update_every: int = 200,
        scale: float = 4.0,
    ) -> None:
        package = library("galore")
        self._projector = {"rank": rank, "update_proj_gap": update_every, "scale": scale}
        self._projector["projection_type"] = "std"
        self._make = package.optimizer.galore.GaLoreProjector
        inner, rest = split_matrices(model, smallest=rank + 1)
        groups: list[dict[str, Any]] = [{"params": inner, **self._projector}, {"params": rest}]
        optimizer = package.GaLore(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=(beta1, beta2),
            weight_decay=weight_decay,
        )
        super().__init__(model, optimizer)

    def step(self, closure: BatchLoss) -> float:
        """As every step; then projections as a file would give them back, to the last bit."""
        loss = super().step(closure)
        for state in self._optimizer.state.values():
            if "projector" in state:
                # Singular vectors come by columns, and products round by layout.
                state["projector"].ortho_matrix = state["projector"].ortho_matrix.contiguous()
        return loss

    def tensors(self) -> dict[str, Tensor]:
        out = {}
        for param, state in self._optimizer.state.items():
            for key, value in state.items():
                kept = value.ortho_matrix if key == "projector" else value
                out[f"{self._names[id(param)]}:{key}"] = kept
        return out | self._group_steps()

    def _restored(self, param: nn.Parameter, key: str, value: Tensor) -> Any:
        value = super()._restored(param, key, value)
        if key != "projector":
            return value
        projector = self._make(**self._projector)
        projector.ortho_matrix = value
        return projector


class APOLLO(FirstOrder):
    """APOLLO (arXiv 2412.05270): AdamW's step sizes learned in a random projection. Ours.

    For a matrix inside the layers, G its gradient with the shorter side first, P of N(0, 1/r)
    entries: R = P G, R' = AdamW's direction for R, and the update is G with each column times
    |R'_j| / |R_j| (or all of it times |R'| / |R|), times `scale`; its norm grows by at most 1 % a
    step. All else is plain AdamW. P is drawn from the seed, so the state of an m x n matrix,
    m <= n, is 2 n rank, and m rank that a resume draws again.

    The class of that name in pytorch_optimizer 4.1 applies the factor to R and projects back, which
    moves weights in the span of P alone; the equations scale the full gradient, as is done here.

    Args:
        model: all its trainable parameters are trained.
        lr, beta1, beta2, weight_decay: as torch's AdamW.
        rank: rows of P; matrices with a side no longer than that are not projected.
        update_every: steps between projections.
        scale: factor of the update (alpha).
        per: "channel" for a factor a column, "tensor" for one in all (APOLLO-Mini: rank 1).
        seed: of the projections.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        rank: int = 32,
        update_every: int = 200,
        scale: float = 1.0,
        per: str = "channel",
        seed: int = 0,
    ) -> None:
        inner, rest = split_matrices(model, smallest=rank + 1)
        options = {"rank": rank, "update_every": update_every, "scale": scale, "per": per}
        groups: list[dict[str, Any]] = [{"params": inner, **options}, {"params": rest}]
        optimizer = _Apollo(
            [group for group in groups if group["params"]], lr, (beta1, beta2), weight_decay, seed
        )
        super().__init__(model, optimizer)


class _Apollo(torch.optim.Optimizer):
    """Groups with a `rank` are projected, others are AdamW."""

    EPS = 1e-8

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        seed: int,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.seed = seed
        self._drawn: dict[nn.Parameter, tuple[int, Tensor]] = {}
        for group in self.param_groups:
            group["step"] = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] += 1
            for i, param in enumerate(group["params"]):
                if param.grad is not None:
                    update = self._update(group, i, param)
                    param.mul_(1.0 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"])

    def _update(self, group: dict[str, Any], index: int, param: nn.Parameter) -> Tensor:
        gradient, state = param.grad, self.state[param]
        if "rank" not in group:
            return self._adam(group, state, gradient)
        upright = gradient.shape[0] > gradient.shape[1]
        gradient = gradient.t() if upright else gradient
        low = self._projection(group, index, param, len(gradient)) @ gradient
        direction = self._adam(group, state, low)
        dim = 0 if group["per"] == "channel" else None
        size = torch.linalg.vector_norm(low, dim=dim)
        factor = torch.linalg.vector_norm(direction, dim=dim) / (size + self.EPS)
        update = gradient * factor * group["scale"]
        norm = torch.linalg.vector_norm(update)
        last = state.get("norm")
        if last is not None and last > 0 and norm > MAX_GROWTH * last:
            update *= MAX_GROWTH * last / norm
            norm = MAX_GROWTH * last
        state["norm"] = norm
        return update.t() if upright else update

    def _adam(self, group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> Tensor:
        beta1, beta2 = group["betas"]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1.0 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        first, second = 1.0 - beta1 ** group["step"], 1.0 - beta2 ** group["step"]
        return (mean / first) / ((square / second).sqrt_().add_(self.EPS))

    def _projection(
        self, group: dict[str, Any], index: int, param: nn.Parameter, rows: int
    ) -> Tensor:
        """P of this step: (rank, rows), a function of seed, parameter and number of the draw."""
        number = (group["step"] - 1) // group["update_every"]
        known = self._drawn.get(param)
        if known is None or known[0] != number:
            seed = (self.seed * _PRIME + index) * _PRIME + number
            generator = torch.Generator().manual_seed(seed % 2**63)
            drawn = torch.randn(group["rank"], rows, generator=generator)
            drawn = drawn.div_(math.sqrt(group["rank"])).to(param.device, param.dtype)
            known = self._drawn[param] = (number, drawn)
        return known[1]
