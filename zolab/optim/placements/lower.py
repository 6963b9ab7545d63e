"""Layers below the lowest one that moves see both signs' rows as one: they pass them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.offload.blocks import Block, NoBlocksError, find_blocks
from zolab.optim.placements.base import Closure
from zolab.optim.placements.modulewise import ModuleWise
from zolab.optim.placements.rows import tensors

#: Types of transformers' models that hand rows through their layers and nowhere beside them; a test
#: compares each with the plain way.
FAMILIES = frozenset((
    *("opt", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
    *("gemma3_text", "phi", "phi3", "roberta", "bert"),
))  # fmt: skip
_TASKS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class LowerLayers:
    """Runs a doubled batch's lower layers on one copy of its rows, where nothing moves in them.

    Until the lowest layer with a weight that moves in this step, both copies of the batch are the
    same numbers. So the model gets one copy, and the rows are doubled where that layer begins, or
    behind the last layer if none moves (head tuning). Whether a batch goes this way depends on the
    model and the batch alone, never on batches before it: a run that was interrupted takes the ways
    of one that was not.

    Args:
        modules: the model's modules with their weights.
    """

    def __init__(self, modules: ModuleWise) -> None:
        self.modules = modules
        self._home: dict[str, int] = {}  # layer of each module that owns trained weights
        blocks = layers_of(modules.model)
        self.layers = [block.module for block in blocks]
        for name, _, _ in modules.owners:
            for i, block in enumerate(blocks):
                if name == block.name or name.startswith(block.name + "."):
                    self._home[name] = i
        #: Whether this model can have it; may be set for one that is known to hand rows on.
        self.usable = bool(self.layers) and is_known(modules.model)
        self._rows: int | None = None
        self._below = False

    def losses(self, closure: Closure) -> Sequence[float]:
        """`closure(2)` within `ModuleWise.evaluating`, the lower layers passed once if they can."""
        start = self._start() if self.usable else None
        if start is None:
            return closure(2)
        try:
            with self._narrow(start):
                return closure(2)
        except _Wide:
            return closure(2)

    def _start(self) -> int | None:
        """The lowest layer that moves, or how many there are; None where nothing can be shared."""
        lowest = len(self.layers)
        for name, _, own in self.modules.owners:
            if not self.modules.stands(own):
                lowest = min(lowest, self._home.get(name, lowest))
        return lowest or None

    @contextmanager
    def _narrow(self, start: int) -> Iterator[None]:
        """One copy of the rows from the model's input to the layer `start`."""

        def begins(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            rows = self.modules.leading_rows()
            both = [t for t in tensors((args, kwargs)) if t.dim() > 0 and t.shape[0] == rows]
            self._rows, self._below = None, False
            # One example's row could not be told from what belongs to all rows.
            if rows < 4 or kwargs.get("use_cache") or not _is_data((args, kwargs)):
                return None
            if not all(torch.equal(*t.chunk(2)) for t in both):
                return None
            self._rows, self._below = rows // 2, True
            return _map(args, _first_half, rows), _map(kwargs, _first_half, rows)

        def below(module: nn.Module, args: tuple, kwargs: dict) -> None:
            sizes = {t.shape[0] for t in tensors((args, kwargs)) if t.dim() > 0}
            if self._rows is not None and not (
                sizes <= {1, self._rows} and _is_data((args, kwargs))
            ):
                raise _Wide

        def from_there(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            # Every layer from there on: masks and the like come to each with the rows of the input.
            if self._rows is None:
                return None
            if not _is_data((args, kwargs)):
                raise _Wide
            self._below = False
            return _map(args, _doubled, self._rows), _map(kwargs, _doubled, self._rows)

        def leaving(module: nn.Module, args: tuple, out: Any) -> Any:
            self._below = False
            return None if self._rows is None else _map(out, _doubled, self._rows)

        def moving(module: nn.Module, args: tuple) -> None:
            if self._below:
                raise _Wide  # before the layers or among the lower ones: both signs differ there

        hooks = [self.modules.model.register_forward_pre_hook(begins, with_kwargs=True)]
        for i, layer in enumerate(self.layers):
            hook = below if i < start else from_there
            hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        if start == len(self.layers):
            hooks.append(self.layers[-1].register_forward_hook(leaving))
        for name, module, own in self.modules.owners:
            if name not in self._home and not self.modules.stands(own):
                hooks.append(module.register_forward_pre_hook(moving))
        try:
            yield
        finally:
            self._rows, self._below = None, False
            for hook in hooks:
                hook.remove()


class _Wide(Exception):
    """This batch cannot be narrowed; found out before anything was made of it."""


def layers_of(model: nn.Module) -> list[Block]:
    """The layers that rows pass one after another; none where a model has no or several lists."""
    try:
        blocks = find_blocks(model)
    except NoBlocksError:
        return []
    return blocks if len({block.name.rpartition(".")[0] for block in blocks}) == 1 else []


def is_known(model: nn.Module) -> bool:
    """Whether a model is one of `FAMILIES`, as transformers has it."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    cls = type(model)
    own = cls.__module__.startswith("transformers.")  # no wrapper that does more
    return own and kind in FAMILIES and cls.__name__.endswith(_TASKS)


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
