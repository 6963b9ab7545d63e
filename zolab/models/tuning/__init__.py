"""Tuning modes: which weights of a model train, and what is added to it for that."""

from __future__ import annotations

from typing import Any

from zolab.models.tuning.base import Full, Tuning
from zolab.models.tuning.lora import Lora
from zolab.models.tuning.prefix import Prefix
from zolab.models.tuning.prompt import Prompt
from zolab.models.tuning.subset import BitFit, Head
from zolab.models.tuning.tensor_train import TensorTrain, load_tensor_train

__all__ = [
    "KINDS",
    "BitFit",
    "Full",
    "Head",
    "Lora",
    "Prefix",
    "Prompt",
    "TensorTrain",
    "Tuning",
    "load_tensor_train",
    "make_tuning",
]

#: `model.tuning.kind` -> class; the other keys of the section are its arguments.
KINDS: dict[str, type[Tuning]] = {
    "full": Full,
    "lora": Lora,
    "prefix": Prefix,
    "prompt": Prompt,
    "head": Head,
    "bitfit": BitFit,
    "tensor_train": TensorTrain,
}


def make_tuning(node: dict[str, Any]) -> Tuning:
    """The tuning mode of a checked `model.tuning` section."""
    return KINDS[node["kind"]](**{key: value for key, value in node.items() if key != "kind"})
