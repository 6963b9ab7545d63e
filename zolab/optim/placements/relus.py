"""ReLUs made where the linear layer before them writes its output.

Between a layer along thin factors and its ReLU the whole output would pass memory twice more, and
once in memory that is freshly written. So the layer's last pass does the ReLU, where that is known
to be the same: an evaluation is followed in which nothing but the ReLU read what the layer
returned, and nobody held it afterwards. From then on the layer returns NaN in the shape of its
output, and the ReLU, called with that very tensor, gives the output. Should a model once read it
elsewhere all the same, its loss is NaN or a ReLU's output is left over: the evaluation was
`mistaken`, and is to be made again.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from zolab.optim.placements.rows import is_plain, tensors

#: Evaluations that are followed at most: a mask may leave some layers out of one.
LOOKS = 4


class Relus:
    """The ReLUs of a model, and the linear layers that end with one.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._relus = [m for m in model.modules() if is_plain(m, nn.ReLU) and not m.inplace]
        self._after: dict[int, nn.Module | None] = {}  # by layer: what alone reads its output
        self._looks = 0 if self._relus else LOOKS
        self._following: _Following | None = None
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # what a layer returned, and its output
        self._on = self._given = False
        self._nan = torch.full((), math.nan)

    @contextmanager
    def evaluating(self, layers: Sequence[int], on: bool) -> Iterator[None]:
        """While active, layers may end with their ReLU.

        Args:
            layers: ids of the linear layers along thin factors.
            on: whether they may.
        """
        self._given = False
        self._on = on and bool(layers) and not _global_hooks()
        if not (self._on and self._relus):
            yield
            return
        mine = [module for module in self._relus if "forward" not in module.__dict__]
        with ExitStack() as stack:
            if self._looks < LOOKS and not self._after.keys() >= set(layers):
                self._following = stack.enter_context(_Following())
            for module in mine:
                module.forward = self._wrap(module, module.forward)
            try:
                yield
                self._learn()
            finally:
                for module in mine:
                    del module.forward
                self._following = None

    def run(self, module: nn.Module, forward: Callable[[bool], Tensor | None]) -> Tensor | None:
        """What a linear layer returns.

        Args:
            module: the layer.
            forward: gives its output, or the output's ReLU; None where it cannot.
        """
        relu = self._after.get(id(module)) if self._on else None
        if relu is None or not _unseen(module, relu):
            out = forward(False)
            if out is not None and self._following is not None:
                self._following.begin(id(module), out)
            return out
        out = forward(True)
        if out is None:
            return None
        self._given = True
        stands_for = self._nan.expand(out.shape)
        self._held[id(stands_for)] = stands_for, out
        return stands_for

    def mistaken(self, losses: Sequence[float]) -> bool:
        """Whether the losses of the last evaluation are to be made again, without any ReLU moved
        from now on."""
        left = bool(self._held)
        self._held.clear()
        # Where no ReLU was moved, losses are not looked at: they may not have been read yet.
        if not self._given or not (left or any(map(math.isnan, losses))):
            return False
        self._after, self._looks = {}, LOOKS
        return True

    def _wrap(self, module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if len(args) == 1 and not kwargs:
                held = self._held.pop(id(args[0]), None)
                if held is not None:
                    return held[1]
                if self._following is not None:
                    return self._following.relu(module, args[0], forward)
            return forward(*args, **kwargs)

        return run

    def _learn(self) -> None:
        if self._following is not None:
            self._looks += 1
            self._after |= self._following.read_by_one()


class _Following(TorchFunctionMode):
    """Sees who reads what layers return; computes nothing itself."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, tuple[weakref.ref, int]] = {}  # layers by the ids of their outputs
        self._outs: dict[int, list[weakref.ref]] = {}
        self._relu: dict[int, list[nn.Module | None]] = {}  # readers; None: something else

    def begin(self, layer: int, out: Tensor) -> None:
        """A layer is about to return its output."""
        self._of[id(out)] = weakref.ref(out), layer
        self._outs.setdefault(layer, []).append(self._of[id(out)][0])

    def relu(self, module: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """A ReLU reads."""
        self._note(x, module)
        with torch._C.DisableTorchFunction():
            return forward(x)

    def read_by_one(self) -> dict[int, nn.Module | None]:
        """By layer, the ReLU that alone read all it returned, once each; None: there is none."""
        return {
            layer: readers[0] if self._is_alone(layer, readers) else None
            for layer, readers in ((one, self._relu.get(one, [])) for one in self._outs)
        }

    def _is_alone(self, layer: int, readers: list[nn.Module | None]) -> bool:
        outs = self._outs[layer]
        alike = len(readers) == len(outs) and len({id(one) for one in readers}) == 1
        return alike and readers[0] is not None and all(out() is None for out in outs)

    def _note(self, x: Any, reader: nn.Module | None) -> None:
        found = self._of.get(id(x))
        if found is not None and found[0]() is x:
            self._relu.setdefault(found[1], []).append(reader)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for x in tensors((args, kwargs)):
            self._note(x, None)
        return func(*args, **(kwargs or {}))


def _unseen(layer: nn.Module, relu: nn.Module) -> bool:
    """Whether no hook sees what passes between the two."""
    return not (layer._forward_hooks or relu._forward_pre_hooks or relu._forward_hooks)


def _global_hooks() -> bool:
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
