"""Arguments and outputs of modules as rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.linear import Linear


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes exactly what `kind` computes."""
    forward = type(module).forward
    return forward is kind.forward or (kind is nn.Linear and forward is Linear.forward)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors(item)


def join_rows(parts: list[Tensor]) -> Tensor:
    """Parts of a batch as one, without a copy if there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def half_rows(tree: Any, which: int) -> Any:
    """Half of the rows of every tensor, 0 or 1; a single row belongs to both halves."""
    if isinstance(tree, Tensor):
        if tree.dim() == 0 or tree.shape[0] == 1:
            return tree
        return tree.chunk(2)[which]
    if isinstance(tree, tuple):
        return tuple(half_rows(item, which) for item in tree)
    if isinstance(tree, list):
        return [half_rows(item, which) for item in tree]
    if isinstance(tree, dict):
        return {key: half_rows(item, which) for key, item in tree.items()}
    return tree


def join(first: Any, second: Any, batch: int | None) -> Any:
    """Rows of both halves again; outputs of row-free inputs are repeated to `batch` rows each."""
    if isinstance(first, Tensor):
        if batch is not None and first.dim() > 0 and first.shape[0] == 1:
            first = first.expand(batch, *first.shape[1:])
            second = second.expand(batch, *second.shape[1:])
        return torch.cat((first, second)) if first.dim() > 0 else torch.stack((first, second))
    if isinstance(first, tuple):
        return tuple(join(a, b, batch) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return type(first)({key: join(first[key], second[key], batch) for key in first})
    return first
