"""Full fine-tuning one block at a time."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from zolab.baselines.first_order import AdamW
from zolab.objectives import BatchLoss
from zolab.optim.masks import layer_of, role_of
from zolab.optim.parameters import canonical_name


class HiFT(AdamW):
    """HiFT (arXiv 2401.15207): in turn, one group of layers has gradients and AdamW's moments.

    Backward stops below the group. The moments of the others wait on the CPU. The learning rate
    changes only when all groups had their turn.

    Args:
        model: its trainable parameters are split into units (embedding, each layer, the rest).
        lr, beta1, beta2, weight_decay: as torch's AdamW.
        group_size: units that move together (m in the paper).
        order: "bottom_up", "top_down" or "random" (one shuffle for the run).
        seed: of the shuffle.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        group_size: int = 1,
        order: str = "bottom_up",
        seed: int = 0,
    ) -> None:
        super().__init__(model, lr, beta1, beta2, weight_decay)
        units = list(_units(model).values())
        self.turns = [
            [param for unit in units[i : i + group_size] for param in unit]
            for i in range(0, len(units), group_size)
        ]
        if order == "top_down":
            self.turns.reverse()
        elif order == "random":
            random.Random(seed).shuffle(self.turns)
        self._lr = lr

    def step(self, closure: BatchLoss) -> float:
        """A step of the group whose turn it is."""
        turn = self.num_steps % len(self.turns)
        if turn == 0:
            self._lr = self.param_groups[0]["lr"]
        self.param_groups[0]["lr"] = self._lr
        active = self.turns[turn]
        others = [p for group in self.turns if group is not active for p in group]
        self._move(active, to_weights=True)
        for param in others:
            param.requires_grad_(False)
        try:
            return super().step(closure)
        finally:
            for param in others:
                param.requires_grad_(True)
            if len(self.turns) > 1:
                self._move(active, to_weights=False)

    def _move(self, params: list[nn.Parameter], to_weights: bool) -> None:
        """Bring the moments of some parameters beside their weights, or to the CPU."""
        for param in params:
            state = self._optimizer.state.get(param, {})
            for key in state.keys() - {"step"}:
                state[key] = state[key].to(param.device if to_weights else "cpu")

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "round:lr": torch.tensor(self._lr, dtype=torch.float64)}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        held = dict(tensors)
        self._lr = float(held.pop("round:lr"))
        super().load_tensors(held, step)
        self._move([p for turn in self.turns for p in turn], to_weights=False)


def _units(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trained parameters by unit, from the input up: embeddings, layers in order, what is left."""
    first: dict[str, list[nn.Parameter]] = {"": []}
    layers: dict[str, list[nn.Parameter]] = {}
    last: dict[str, list[nn.Parameter]] = {"top": []}
    for raw, param in model.named_parameters():
        if not param.requires_grad:
            continue
        name = canonical_name(raw)
        layer = layer_of(name)
        if layer is not None:
            layers.setdefault(layer, []).append(param)
        else:
            (first[""] if role_of(name) == "embed" else last["top"]).append(param)
    return {k: v for k, v in {**first, **layers, **last}.items() if v}
