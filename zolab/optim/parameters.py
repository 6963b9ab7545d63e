"""Which parameters there are, and the ids that noise is keyed by."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Adapter parameters count from here, so that adding an adapter never moves a base parameter's id.
ADAPTER_BASE = 1 << 24
_ADAPTER_MARKS = (".lora_", "lora_", "prompt_encoder", "prefix_", "adapter_")
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.")
_INNER = (".base_layer", "._orig_mod", "._fsdp_wrapped_module")


@dataclass(eq=False)
class ParamInfo:
    """One parameter as the parts see it.

    Attributes:
        name: canonical name, wrapper prefixes stripped.
        pid: id that noise is keyed by.
        param: the live parameter.
        group: index of its optimizer group, -1 when it is not trained.
    """

    name: str
    pid: int
    param: nn.Parameter
    group: int = -1

    @property
    def data(self) -> Tensor:
        """The weights, detached, sharing memory: any shape."""
        return self.param.data

    @property
    def numel(self) -> int:
        return self.param.numel()

    @property
    def is_vector(self) -> bool:
        """Biases, norm gains and other tensors of fewer than two dimensions."""
        return self.param.dim() < 2


def canonical_name(name: str) -> str:
    """A parameter's name without the prefixes that wrappers (DDP, compile, peft) add."""
    changed = True
    while changed:
        changed = False
        for prefix in _WRAPPERS:
            if name.startswith(prefix):
                name, changed = name[len(prefix) :], True
    for mark in _INNER:
        name = name.replace(mark, "")
    return name


def is_adapter(name: str) -> bool:
    """Whether a canonical name belongs to an adapter rather than to the base model."""
    return any(mark in name for mark in _ADAPTER_MARKS)


def parameter_table(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Ids of all unique parameters: index among the sorted canonical names, adapters apart.

    Args:
        named: (name, parameter) pairs, tied tensors possibly under several names; a tied tensor
            counts once, under the first name it comes with.
    """
    seen: set[int] = set()
    base: list[str] = []
    adapters: list[str] = []
    for raw, tensor in named:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        name = canonical_name(raw)
        (adapters if is_adapter(name) else base).append(name)
    table = {name: pid for pid, name in enumerate(sorted(base))}
    table |= {name: ADAPTER_BASE + i for i, name in enumerate(sorted(adapters))}
    if len(table) != len(base) + len(adapters):
        raise ValueError("two parameters have the same canonical name")
    return table


def check_trainable(info: ParamInfo) -> None:
    """Refuse parameters that have no values to perturb; ValueError naming the parameter."""
    if info.param.is_meta:
        raise ValueError(f"parameter {info.name} is on the meta device: it has no values to train")
    if info.param.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(
            f"parameter {info.name} has dtype {info.param.dtype}: expected float32, float64, "
            "bfloat16 or float16 (freeze it, or leave it out)"
        )
    if not info.param.is_contiguous():
        raise ValueError(f"parameter {info.name} is not contiguous")


def check_group(group: dict[str, Any]) -> None:
    """Refuse numbers of a parameter group that are out of range; ValueError naming the key."""
    for key, bad in (
        ("lr", not group["lr"] >= 0.0),
        ("eps", not group["eps"] > 0.0),
        ("weight_decay", not group["weight_decay"] >= 0.0),
    ):
        if bad or not math.isfinite(float(group[key])):
            bound = "> 0" if key == "eps" else ">= 0"
            raise ValueError(f"{key} = {group[key]}: expected a finite number {bound}")


def collect(
    groups: Sequence[dict[str, Any]], model: nn.Module | None
) -> tuple[dict[str, int], list[ParamInfo]]:
    """The id table and the trained parameters in order, tied tensors once.

    Args:
        groups: an optimizer's parameter groups.
        model: the module that owns the parameters; ids then count all its parameters.

    Raises:
        ValueError: a parameter that is not the model's or cannot be trained, or nothing to train.
    """
    named = []
    for number, group in enumerate(groups):
        names = group.get("param_names") or [
            f"param_{number}_{i}" for i in range(len(group["params"]))
        ]
        named += [(n, p, number) for n, p in zip(names, group["params"], strict=True)]
    every = [(n, p) for n, p, _ in named] if model is None else list(model.named_parameters())
    table = parameter_table(every)
    names_of = {id(param): canonical_name(name) for name, param in every}
    infos = []
    for name, param, number in named:
        if not param.requires_grad:
            continue
        if id(param) not in names_of:
            raise ValueError(f"parameter {name} is not a parameter of model")
        canonical = names_of[id(param)]
        infos.append(ParamInfo(canonical, table[canonical], param, number))
        check_trainable(infos[-1])
    whole = [f"{n} ({p.dtype})" for n, p, _ in named if not p.is_floating_point()]
    if not infos:
        odd = f"; {', '.join(whole[:3])} cannot have it" if whole else ""
        first = named[0][0] if named else "none given"
        raise ValueError(
            f"nothing to train: none of {len(named)} parameters (first: {first}) has requires_grad"
            f"{odd}"
        )
    if whole:
        warnings.warn(f"not trained, not floating-point: {', '.join(whole[:3])}", stacklevel=4)
    return table, infos
