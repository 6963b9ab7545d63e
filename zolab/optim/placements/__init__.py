"""Where weights live and how a perturbed loss is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zolab.optim.directions import Direction
from zolab.optim.low_rank import LowRank
from zolab.optim.masks import Dense
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.base import Placement, Probe
from zolab.optim.placements.in_place import InPlace
from zolab.optim.placements.offload import Offload
from zolab.optim.placements.paired import Paired
from zolab.optim.placements.per_layer import PerLayer

__all__ = ["InPlace", "Offload", "Paired", "PerLayer", "Placement", "Probe", "default_placement"]


def default_placement(
    infos: Sequence[ParamInfo], mask: Dense, direction: Direction, model: nn.Module | None
) -> Placement:
    """`InPlace` for dense wide weights; `Paired`, given a model, for 16-bit weights, masks, and
    directions of low rank, whose two signs then share one product with the weights."""
    half = any(info.param.dtype in (torch.bfloat16, torch.float16) for info in infos)
    masked = mask.sparsity > 0.0
    thin = isinstance(direction, LowRank)
    return Paired() if model is not None and (half or masked or thin) else InPlace()
