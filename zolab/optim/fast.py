"""Which faster kernels work on a tensor: C on the CPU, Triton on CUDA, or none but plain torch.

All give the same bits, so the choice is made tensor by tensor and nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from zolab.optim import native, triton

__all__ = ["handles", "kernels", "makes", "name", "settle", "together"]


def kernels(kind: str | None, tensor: Tensor, state: bool = False) -> ModuleType | None:
    """The module whose `fill`, `rows`, `sweep` and `pair` work on a tensor; None: plain torch.

    Args:
        kind: name of the noise, None for a direction that only plain torch can make.
        tensor: what they would read or write.
        state: whether a sweep has steps with moments (`moments.Step`) among its terms.
    """
    on = triton if triton.takes(tensor.device) or tensor.device.type == "cuda" else native
    if not on.handles(kind, tensor) or (state and not on.takes_steps(kind, tensor)):
        return None
    return on


def handles(kind: str | None, tensor: Tensor, state: bool = False) -> bool:
    """Whether there are faster kernels for a tensor."""
    return kernels(kind, tensor, state) is not None


def makes(kind: str | None, device: torch.device) -> bool:
    """Whether there are faster kernels that make z itself on a device."""
    return handles(kind, torch.empty(0, device=device))


def name(kind: str | None, tensor: Tensor) -> str:
    """What sweeps over a tensor go by: "cpp", "triton" or "torch"."""
    on = kernels(kind, tensor)
    return "torch" if on is None else on.NAME


@contextmanager
def together() -> Iterator[None]:
    """Sweeps are collected and made at the end, over many parameters at once.

    Whoever looks at the weights before that calls `settle` first.
    """
    with native.together(), triton.together():
        yield


def settle() -> None:
    """Make the sweeps that `together` has collected so far."""
    native.settle()
    triton.settle()
