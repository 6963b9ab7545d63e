"""What a cell will need, from its config alone: weights, memory, disk, time. No torch, no files."""

from zolab.costs.memory import Need, memory_of
from zolab.costs.shapes import Shape, shape_of
from zolab.costs.work import DEFAULT_FLOPS, FLOPS_SOURCE, Work, disk_of, tokens_of, work_of

__all__ = [
    "DEFAULT_FLOPS",
    "FLOPS_SOURCE",
    "Need",
    "Shape",
    "Work",
    "disk_of",
    "memory_of",
    "shape_of",
    "tokens_of",
    "work_of",
]
