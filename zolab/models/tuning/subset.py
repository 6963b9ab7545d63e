"""Tuning modes that add nothing: a part of the model's own weights trains."""

from __future__ import annotations

from torch import nn

from zolab.errors import UserError
from zolab.models.tuning.base import Tuning


class Head(Tuning):
    """The output layer, and what stands between it and the transformer in a masked model.

    Source: the head tuning of MeZO (arXiv 2305.17333, appendix E). Most models share the matrix of
    the output layer with the embedding; then it becomes a copy of its own, since the transformer
    below must stay as it is (`untie=False` trains the shared matrix instead).

    Args:
        untie: as above.
    """

    kind = "head"

    def __init__(self, untie: bool = True) -> None:
        self.untie = untie

    def apply(self, model: nn.Module, num_words: int) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise UserError(
                f"model.tuning.kind = 'head': {type(model).__name__} has no output layer"
            )
        below = {id(param) for param in model.base_model.parameters()}
        if self.untie and id(head.weight) in below:
            head.weight = nn.Parameter(head.weight.detach().clone())
            model.config.get_text_config().tie_word_embeddings = False
            model.config.tie_word_embeddings = False
        for param in model.parameters():
            param.requires_grad_(id(param) not in below)
        head.weight.requires_grad_(True)


class BitFit(Tuning):
    """All biases, those of layer norms among them. Source: BitFit (arXiv 2106.10199), section 3."""

    kind = "bitfit"

    def apply(self, model: nn.Module, num_words: int) -> None:
        names = [n for n, _ in model.named_parameters() if n.rpartition(".")[2] == "bias"]
        if not names:
            raise UserError(
                f"model.tuning.kind = 'bitfit': {type(model).__name__} has no biases to train; "
                "use lora, prefix or head"
            )
        for name, param in model.named_parameters():
            param.requires_grad_(name in names)
