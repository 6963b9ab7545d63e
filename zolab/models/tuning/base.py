"""The interface of tuning modes, and the one in which everything trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zolab.errors import UserError, nearest
from zolab.optim.parameters import canonical_name, is_adapter

#: `task_type` of an adapter in peft's format.
TASK_TYPES = {"causal": "CAUSAL_LM", "masked": "FEATURE_EXTRACTION"}


class Tuning:
    """Which weights train, and what is added to the model for it.

    Attributes:
        kind: name in configs.
        frozen_base: the weights that the model came with do not move, or few of them do.
        num_positions: positions that what is added takes from the text.
        adapter_format: what `save_adapter` writes: "peft", "zolab", or None if it cannot.
        merges: `save_model` gives a plain model of transformers.
    """

    kind: str
    frozen_base = True
    num_positions = 0
    adapter_format: str | None = None
    merges = True

    def apply(self, model: nn.Module, num_words: int) -> None:
        """Add what trains and freeze what does not; draws from torch's global generator.

        Args:
            model: of transformers, on its device; changed in place.
            num_words: tokens that the tokenizer knows; ids below it are words.

        Raises:
            UserError: the model has no place for it, by name.
        """
        raise NotImplementedError

    def save_model(self, model: nn.Module, out: Path) -> None:
        """Write the tuned model as a folder of transformers; may change the model to that end."""
        model.save_pretrained(out)
        json.loads((out / "config.json").read_text())  # a half-written folder must not look whole

    def save_adapter(self, model: nn.Module, out: Path, base: str, kind: str) -> None:
        """Write what was added alone.

        Args:
            model: tuned.
            out: folder to make.
            base: folder or hub name of the model without it.
            kind: "causal" or "masked".
        """
        raise UserError(
            f"model.tuning.kind = {self.kind!r}: it trains weights of the model itself, so there "
            "is no adapter to write; export the model"
        )


class Full(Tuning):
    """All weights train."""

    kind = "full"
    frozen_base = False

    def apply(self, model: nn.Module, num_words: int) -> None:
        """Nothing to add, nothing to freeze."""


def freeze_base(model: nn.Module) -> None:
    """Leave adapters trainable, in float32, and nothing else."""
    for name, param in model.named_parameters():
        added = is_adapter(canonical_name(name))
        param.requires_grad_(added)
        if added and param.dtype in (torch.bfloat16, torch.float16):
            param.data = param.data.float()


def matching_modules(model: nn.Module, targets: list[str]) -> list[str]:
    """Names of the modules that a list of targets means, as peft reads it.

    Args:
        model: where to look.
        targets: last words of a module's name, such as "q_proj" or "attention.dense".

    Raises:
        UserError: a target that is no module's name, with the nearest one.
    """
    names = [name for name, _ in model.named_modules()]
    found: list[str] = []
    for target in targets:
        mine = [name for name in names if name == target or name.endswith(f".{target}")]
        if not mine:
            raise UserError(_no_such_target(model, target, targets))
        found += mine
    wide = _linears(model)
    for name in found:
        if name not in wide:
            inner = type(model.get_submodule(name)).__name__
            raise UserError(
                f"model.tuning.targets = {targets!r}: {name} is a {inner}, expected a linear layer "
                f"({_choices(model)})"
            )
    return list(dict.fromkeys(found))


def find_targets(model: nn.Module, choices: tuple[tuple[str, ...], ...], what: str) -> list[str]:
    """The first of several lists of targets that a model has modules for, all of them.

    Raises:
        UserError: it has modules for none; names its linear layers.
    """
    names = [name for name, _ in model.named_modules()]
    for targets in choices:
        if all(any(name.endswith(f".{target}") for name in names) for target in targets):
            return list(targets)
    raise UserError(
        f"model.tuning.targets = None: {type(model).__name__} has no {what} under a known name; "
        f"name the layers ({_choices(model)})"
    )


def _linears(model: nn.Module) -> set[str]:
    """Names of modules that multiply by a matrix (transformers' Conv1D of GPT-2 among them)."""
    kinds = ("Linear", "Conv1D")
    return {name for name, module in model.named_modules() if type(module).__name__ in kinds}


def _choices(model: nn.Module) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in _linears(model)}))


def _no_such_target(model: nn.Module, target: str, targets: list[str]) -> str:
    short = sorted({name.rpartition(".")[2] for name in _linears(model)})
    return (
        f"model.tuning.targets = {targets!r}: no module of {type(model).__name__} is named "
        f"{target}{nearest(target, short)} (its linear layers are {', '.join(short)})"
    )


def write_adapter(out: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """An adapter folder in peft's file layout, its config from plain values."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
