"""Where weights live and how a perturbed loss is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zolab.optim.masks import Dense
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.base import Placement, Probe
from zolab.optim.placements.in_place import InPlace
from zolab.optim.placements.offload import Offload
from zolab.optim.placements.paired import Paired
from zolab.optim.placements.per_layer import PerLayer

__all__ = ["InPlace", "Offload", "Paired", "PerLayer", "Placement", "Probe", "default_placement"]


def default_placement(
    infos: Sequence[ParamInfo], mask: Dense, model: nn.Module | None
) -> Placement:
    """`InPlace` for dense wide weights; `Paired` for 16-bit weights or masks, given a model."""
    half = any(info.param.dtype in (torch.bfloat16, torch.float16) for info in infos)
    masked = mask.sparsity > 0.0
    return Paired() if model is not None and (half or masked) else InPlace()
