"""Layers below the lowest one that moves see both signs' rows as one: they pass them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.offload.blocks import NoBlocksError, find_blocks
from zolab.optim.placements.base import Closure
from zolab.optim.placements.modulewise import ModuleWise
from zolab.optim.placements.rows import tensors

#: Largest difference between a layer's outputs both ways, times the largest output, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class LowerLayers:
    """Runs a doubled batch's lower layers on one copy of its rows, where nothing moves in them.

    Until the lowest layer with a weight that moves in this step, both copies of the batch are the
    same numbers. So the model gets one copy, and the rows are doubled where that layer begins, or
    behind the last layer if none moves (head tuning). For any model whose layers are one list and
    that hands rows through them; whether it does is found out on the first batch: what each layer
    gets is looked at, and the outputs of the last layer are compared both ways.

    Args:
        modules: the model's modules with their weights.
    """

    def __init__(self, modules: ModuleWise) -> None:
        self.modules = modules
        self.layers: list[nn.Module] = []
        self._home: dict[str, int] = {}  # layer of each module that owns trained weights
        try:
            blocks = find_blocks(modules.model)
        except NoBlocksError:
            blocks = []
        if len({block.name.rpartition(".")[0] for block in blocks}) == 1:
            self.layers = [block.module for block in blocks]
        for name, _, _ in modules.owners:
            for i, block in enumerate(blocks):
                if name == block.name or name.startswith(block.name + "."):
                    self._home[name] = i
        around = {name for name, _, _ in modules.owners for b in blocks if _holds(name, b.name)}
        self._early = {name for name in around if name not in self._home}
        self.usable: bool | None = None if self.layers else False
        self._rows: int | None = None
        self._watched = False

    def losses(self, closure: Closure) -> Sequence[float]:
        """`closure(2)` within `ModuleWise.evaluating`, the lower layers passed once if they can."""
        if self.usable is False:
            return closure(2)
        if self.usable is None:
            return self._first(closure)
        start = self._start()
        if start is None:
            return closure(2)
        with self._narrow(start):
            return closure(2)

    def _start(self) -> int | None:
        """The lowest layer that moves, or how many there are; None where nothing can be shared."""
        lowest = len(self.layers)
        for name, _, own in self.modules.owners:
            if self.modules.stands(own):
                continue
            if name in self._early:
                return None
            lowest = min(lowest, self._home.get(name, lowest))
        return lowest or None

    def _first(self, closure: Closure) -> Sequence[float]:
        """Both ways, to see whether this model can have it."""
        if self._watched and self._start() is None:
            return closure(2)
        seen: list[Tensor] = []
        with self._watching(seen):
            plain = closure(2)
        self._watched = True
        start = None if self.usable is False else self._start()
        if start is None:
            return plain
        again: list[Tensor] = []
        try:
            with self._narrow(start), self._capturing(again):
                losses = closure(2)
        except (RuntimeError, ValueError, TypeError, IndexError):
            self.usable = False  # it does something else with rows than hand them on
            return plain
        self.usable = len(seen) == len(again) and all(map(_alike, seen, again))
        return losses if self.usable else plain

    # -- hooks -----------------------------------------------------------------------------------

    @contextmanager
    def _watching(self, outputs: list[Tensor]) -> Iterator[None]:
        """Note which modules compute before the layers, and what the layers are given."""
        inside = [False]

        def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
            inside[0] = True
            rows = self.modules.leading_rows()
            sizes = {t.shape[0] for t in tensors((args, kwargs)) if t.dim() > 0}
            if not sizes <= {1, rows} or not _is_data((args, kwargs)):
                self.usable = False

        def early(name: str) -> Callable:
            def note(module: nn.Module, args: tuple) -> None:
                if not inside[0]:
                    self._early.add(name)

            return note

        def begins(module: nn.Module, args: tuple) -> None:
            inside[0] = False

        hooks = [self.modules.model.register_forward_pre_hook(begins)]
        hooks += [x.register_forward_pre_hook(entering, with_kwargs=True) for x in self.layers]
        hooks += [
            module.register_forward_pre_hook(early(name))
            for name, module, _ in self.modules.owners
            if name not in self._home
        ]
        with self._capturing(outputs), _removed(hooks):
            yield

    @contextmanager
    def _capturing(self, outputs: list[Tensor]) -> Iterator[None]:
        def leaving(module: nn.Module, args: tuple, out: Any) -> None:
            outputs.append(next(iter(tensors(out))).clone())

        with _removed([self.layers[-1].register_forward_hook(leaving)]):
            yield

    @contextmanager
    def _narrow(self, start: int) -> Iterator[None]:
        """One copy of the rows from the model's input to the layer `start`."""

        def begins(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            rows = self.modules.leading_rows()
            both = [t for t in tensors((args, kwargs)) if t.dim() > 0 and t.shape[0] == rows]
            self._rows = None
            # One example's row could not be told from what belongs to all rows.
            if rows < 4 or kwargs.get("use_cache") or not _is_data((args, kwargs)):
                return None
            if not all(torch.equal(*t.chunk(2)) for t in both):
                return None
            self._rows = rows // 2
            return _map(args, _first_half, rows), _map(kwargs, _first_half, rows)

        def entering(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if self._rows is None:
                return None
            return _map(args, _doubled, self._rows), _map(kwargs, _doubled, self._rows)

        def leaving(module: nn.Module, args: tuple, out: Any) -> Any:
            return None if self._rows is None else _map(out, _doubled, self._rows)

        hooks = [self.modules.model.register_forward_pre_hook(begins, with_kwargs=True)]
        if start < len(self.layers):
            layer = self.layers[start]
            hooks.append(layer.register_forward_pre_hook(entering, with_kwargs=True))
        else:
            hooks.append(self.layers[-1].register_forward_hook(leaving))
        with _removed(hooks):
            yield


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    """Hooks that are gone afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _holds(owner: str, block: str) -> bool:
    return owner == "" or block.startswith(owner + ".")


def _alike(plain: Tensor, other: Tensor) -> bool:
    if plain.shape != other.shape:
        return False
    bound = TOLERANCE.get(plain.dtype, 0.0) * max(1.0, float(plain.abs().max()))
    return bool((plain - other).abs().max() <= bound)


def _is_data(tree: Any) -> bool:
    """Whether there are only tensors and plain values: no object that keeps rows of its own."""
    if isinstance(tree, (tuple, list)):
        return all(map(_is_data, tree))
    if isinstance(tree, dict):
        return all(map(_is_data, tree.values()))
    return isinstance(tree, (Tensor, *_PLAIN))


def _map(tree: Any, change: Callable[[Tensor, int], Tensor], rows: int) -> Any:
    """The same nest with `change` on each tensor of so many rows."""
    if isinstance(tree, Tensor):
        return change(tree, rows) if tree.dim() > 0 and tree.shape[0] == rows else tree
    if isinstance(tree, tuple):
        return tuple(_map(item, change, rows) for item in tree)
    if isinstance(tree, list):
        return [_map(item, change, rows) for item in tree]
    if isinstance(tree, dict):
        return type(tree)({key: _map(item, change, rows) for key, item in tree.items()})
    return tree


def _first_half(tensor: Tensor, rows: int) -> Tensor:
    return tensor[: rows // 2]


def _doubled(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat((tensor, tensor))
