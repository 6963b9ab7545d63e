"""One forward over a doubled batch, one loss per copy, for models that make their own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WAY_OUT = "use placement=PerLayer() or InPlace(), which evaluate one copy at a time"


def repeat_rows(
    inputs: dict[str, Any], copies: int, main: str
) -> tuple[dict[str, Any], frozenset[int]]:
    """The inputs with their rows repeated `copies` times along dimension 0.

    Args:
        inputs: the model's arguments.
        copies: how often.
        main: name of the input whose leading dimension is the batch; if there is none of that
            name, the first tensor.

    Returns:
        The repeated inputs, the main one first, and the leading sizes that a tensor made of all
        rows can have: rows, and rows times tokens.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"no input is a tensor, so there are no rows to repeat: {WAY_OUT}")
    first = main if main in tensors else next(iter(tensors))
    shape = tensors[first].shape
    rows = {shape[0], shape[0] * shape[1]} if len(shape) > 1 else {shape[0]}
    out: dict[str, Any] = {}
    for name, value in {first: inputs[first], **inputs}.items():
        whole = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] in rows
        out[name] = torch.cat([value] * copies) if whole else value
    return out, frozenset(copies * size for size in rows)


class LossPerCopy:
    """While active, whatever makes the loss is called once per copy of the rows.

    The loss is made by `loss_function` of the model, or by `compute_loss_func` or `label_smoother`
    of the trainer; all of them get outputs and labels as arguments, which are cut into copies.

    Args:
        trainer: the Trainer whose `compute_loss` is about to be called.
        model: what it will call.
        copies: copies of the rows in the batch.
        sizes: leading sizes of tensors made of all rows.
    """

    def __init__(self, trainer: Any, model: nn.Module, copies: int, sizes: frozenset[int]) -> None:
        self.trainer, self.model, self.copies, self.sizes = trainer, model, copies, sizes
        self.calls: list[tuple[Tensor, list[Tensor]]] = []  # what was returned, its parts
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> LossPerCopy:
        for name in ("compute_loss_func", "label_smoother"):
            inner = getattr(self.trainer, name, None)
            if inner is not None:
                setattr(self.trainer, name, self._wrap(inner))
                self._undo.append(lambda n=name, f=inner: setattr(self.trainer, n, f))
        for module in self.model.modules():
            if not hasattr(type(module), "loss_function"):
                continue
            own = module.__dict__.get("_loss_function")
            module.loss_function = self._wrap(module.loss_function)
            self._undo.append(lambda m=module, f=own: _set_back(m, f))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()

    def of(self, loss: Tensor) -> list[Tensor]:
        """The loss of each copy.

        Args:
            loss: what `compute_loss` gave; it must be what the loss function gave and no more.

        Raises:
            ValueError: the loss was made elsewhere, or something was added to it.
        """
        name = type(self.model).__name__
        if len(self.calls) != 1:
            raise ValueError(
                f"{name}: its loss is made by {len(self.calls)} calls of loss_function, "
                f"compute_loss_func or label smoothing, placement paired needs one: {WAY_OUT}"
            )
        given, parts = self.calls[0]
        if not torch.equal(loss.double().nan_to_num(), given.double().nan_to_num()):
            raise ValueError(
                f"{name}: its loss is {loss.item():g}, but its loss function gave "
                f"{given.item():g}; what is added in between cannot be told apart by copy: "
                f"{WAY_OUT}"
            )
        return parts

    def _wrap(self, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def split(*args: Any, **kwargs: Any) -> Tensor:
            parts = [
                inner(*self._copy(args, i), **self._copy(kwargs, i)) for i in range(self.copies)
            ]
            mean = torch.stack(parts).mean()
            # A clone, because Trainer scales the loss in place.
            self.calls.append((mean.clone(), parts))
            return mean

        return split

    def _copy(self, tree: Any, number: int) -> Any:
        """One copy's share of arguments or outputs; what has no rows is everybody's."""
        if isinstance(tree, Tensor):
            whole = tree.dim() > 0 and tree.shape[0] in self.sizes
            return tree.chunk(self.copies)[number] if whole else tree
        if type(tree) in (tuple, list):
            return type(tree)(self._copy(item, number) for item in tree)
        if isinstance(tree, dict):
            return type(tree)(**{key: self._copy(item, number) for key, item in tree.items()})
        return tree


def _set_back(module: nn.Module, own: Callable | None) -> None:
    """Take the wrapped loss function off a model, which usually has none of its own."""
    if own is None:
        del module._loss_function
    else:
        module._loss_function = own
