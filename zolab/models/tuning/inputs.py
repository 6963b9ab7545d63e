"""Arguments of a transformer's forward, as prefix and prompt change them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zolab.errors import UserError


def transformer_of(model: nn.Module) -> nn.Module:
    """The module that a model hands its input to: the first one that its forward calls.

    `model.base_model` is not always it: OPT calls the decoder inside.
    """
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in model.modules()
        if module is not model
    ]
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    try:
        with torch.no_grad():
            model(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    return called[0]


class Inputs:
    """What a transformer is called with.

    Args:
        backbone: the model of transformers without its output layer.
        num_tokens: how many positions are put before the text.
    """

    def __init__(self, backbone: nn.Module, num_tokens: int) -> None:
        self.backbone = backbone
        self.num_tokens = num_tokens
        self._names = list(inspect.signature(backbone.forward).parameters)

    def require(self, name: str, kind: str) -> None:
        """UserError unless the transformer takes an argument of that name."""
        if name not in self._names:
            raise UserError(
                f"model.tuning.kind = {kind!r}: {type(self.backbone).__name__} takes no {name}, "
                "which it needs; use lora"
            )

    def shifted(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, positions and mask making room for what comes before the text."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        mask = given.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            given["attention_mask"] = F.pad(mask, (self.num_tokens, 0), value=1)
        for name in ("position_ids", "cache_position"):
            if given.get(name) is not None:
                given[name] = given[name] + self.num_tokens
        return given

    @staticmethod
    def num_rows(given: dict[str, Any]) -> int:
        """Rows of the batch."""
        ids = given.get("input_ids")
        return (given["inputs_embeds"] if ids is None else ids).shape[0]
