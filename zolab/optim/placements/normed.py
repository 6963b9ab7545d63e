"""Layer normalisation whose weights differ between the halves of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from zolab.optim import native
from zolab.optim.native.norm import Norm, takes_norm
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.rows import is_plain

Pair = tuple[Tensor, Tensor]


class HalvesNorm:
    """A layer normalisation of both halves of the rows, written where they lie together.

    Args:
        module: the layer.
        weight, bias: its parameters.

    Attributes:
        pids: parameters that must not have been perturbed by an outer module.
        norm: the kernel.
    """

    norm: Norm

    def __init__(self, module: nn.LayerNorm, weight: ParamInfo, bias: ParamInfo) -> None:
        self.module = module
        self.both = weight, bias
        self.pids = frozenset(info.pid for info in self.both)

    @classmethod
    def of(cls, module: nn.Module, own: Sequence[ParamInfo]) -> HalvesNorm | None:
        """The same by a module and its parameters that are perturbed; None for other modules."""
        if not is_plain(module, nn.LayerNorm):
            return None
        found = {id(info.param): info for info in own}
        both = [found.get(id(param)) for param in (module.weight, module.bias)]
        return None if None in both else cls(module, *both)

    def aim(self, pair: Callable[[ParamInfo], Pair | None]) -> bool:
        """Take what an evaluation needs, if the kernel is for it: whether it is.

        Args:
            pair: both perturbed copies of a parameter, None if they are not at hand.
        """
        pairs = [pair(info) for info in self.both]
        if None in pairs or not takes_norm(*pairs[0], *pairs[1]):
            return False
        norm = self.__dict__.get("norm")
        if norm is not None and norm.n == len(pairs[0][0]) and norm.on is native.loaded():
            norm.aim(*pairs)
        else:
            self.norm = Norm(*pairs, self.module.eps)
        return True

    def rest(self) -> None:
        """Hold nothing until the next evaluation."""
        self.norm.rest()

    def __call__(self, x: Tensor) -> Tensor | None:
        """Output for a batch, None where the kernel is not made for it.

        Args:
            x: (rows, ..., n).
        """
        return self.norm(x) if self.norm.takes(x) else None
