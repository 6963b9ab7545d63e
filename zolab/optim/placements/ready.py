"""What modules need of small parameters, made for all of them at once when an evaluation begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zolab.optim.engine import Engine
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.rows import is_plain

#: Elements of a parameter that is small: calls for it would take longer than its work.
SMALL = 1 << 16

#: Name, module, and the trained parameters of its own.
Owner = tuple[str, nn.Module, list[ParamInfo]]


class Ready:
    """Perturbed vectors of one evaluation, and z of the biases whose matrix has thin factors."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.zs: dict[int, Tensor] = {}

    def make(
        self, engine: Engine, owners: Sequence[Owner], seed: int, eps: Sequence[float]
    ) -> None:
        """Make them from clean weights; where no native kernels do, they are made when needed.

        Args:
            engine: trained parameters, noise and masks.
            owners: the modules that own them.
            seed: direction.
            eps: perturbation scale of each group.
        """
        apart, shifts = _small(engine, owners)
        self.pairs = engine.pairs(apart, [info.data for info in apart], seed, eps)
        self.zs = engine.whole_zs(shifts, [info.data for info in shifts], seed)
        if engine.infos:
            engine.direction.prepare(seed, engine.infos[0].data.device)

    def clear(self) -> None:
        """The evaluation is over."""
        self.pairs, self.zs = {}, {}


def ready_bytes(engine: Engine, owners: Sequence[Owner]) -> int:
    """Bytes of what `Ready` holds over an evaluation."""
    apart, shifts = _small(engine, owners)
    twice = sum(2 * info.numel * info.param.element_size() for info in apart)
    return twice + sum(4 * info.numel for info in shifts) + engine.direction.prepared_bytes()


def _small(engine: Engine, owners: Sequence[Owner]) -> tuple[list[ParamInfo], list[ParamInfo]]:
    """Vectors that modules need perturbed, and biases that go into a left factor."""
    apart: dict[int, ParamInfo] = {}
    shifts: dict[int, ParamInfo] = {}
    for _, module, own in owners:
        for info in own:
            if info.is_vector and info.numel <= SMALL:
                (shifts if _is_shift(engine, module, own, info) else apart)[info.pid] = info
    return list(apart.values()), list(shifts.values())


def _is_shift(engine: Engine, module: nn.Module, own: list[ParamInfo], info: ParamInfo) -> bool:
    if not is_plain(module, nn.Linear) or info.param is not module.bias:
        return False
    weights: Iterator[ParamInfo] = (one for one in own if one.param is module.weight)
    return any(engine.direction.factor_bytes(one) is not None for one in weights)
