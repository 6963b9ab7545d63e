"""What modules need in an evaluation, made for all of them at once when it begins.

Between two products every line of Python runs from cold caches, so as little as can be is left to
the time when a module is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zolab.optim.engine import Engine
from zolab.optim.parameters import ParamInfo, is_adapter
from zolab.optim.placements.factored import ThinLinear, thin_linear
from zolab.optim.placements.rows import is_plain

#: Elements of a parameter that is small: calls for it would take longer than its work.
SMALL = 1 << 16

#: Name, module, and the trained parameters of its own.
Owner = tuple[str, nn.Module, list[ParamInfo]]


class Ready:
    """Perturbed small parameters of one evaluation, and layers along thin factors, by module."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.linear: dict[int, ThinLinear] = {}

    def make(
        self,
        engine: Engine,
        owners: Sequence[Owner],
        seed: int,
        eps: Sequence[float],
        signs: Sequence[float],
    ) -> None:
        """Make them from clean weights; where no native kernels do, modules do it when called.

        Args:
            engine: trained parameters, noise and masks.
            owners: the modules that own them.
            seed: direction.
            eps: perturbation scale of each group.
            signs: one for the whole batch, or one for each half of the rows.
        """
        apart, shifts = _small(engine, owners)
        self.pairs = engine.pairs(apart, [info.data for info in apart], seed, eps)
        if not engine.infos or not engine.direction.prepared_bytes():
            return
        engine.direction.prepare(seed, engine.infos[0].data.device)
        zs = engine.whole_zs(shifts, [info.data for info in shifts], seed)
        clean = {info.pid: info.data for info in engine.infos}
        for _, module, own in owners:
            factors = _factors(engine, module, own, seed)
            if factors is None or any(one.pid not in zs for one in own if one.is_vector):
                continue
            made = thin_linear(module, own, clean, factors, eps, signs, lambda one: zs[one.pid])
            if made is not None:
                self.linear[id(module)] = made

    def clear(self) -> None:
        """The evaluation is over."""
        self.pairs, self.linear = {}, {}


def _factors(
    engine: Engine, module: nn.Module, own: list[ParamInfo], seed: int
) -> tuple[Tensor, Tensor] | None:
    if not is_plain(module, nn.Linear):
        return None
    of_weight = [info for info in own if info.param is module.weight]
    return engine.factors(of_weight[0], of_weight[0].data, seed) if of_weight else None


def ready_bytes(engine: Engine, owners: Sequence[Owner]) -> tuple[int, frozenset[int]]:
    """Bytes of what `Ready` holds over an evaluation, and ids of the parameters it perturbs."""
    apart, shifts = _small(engine, owners)
    twice = sum(2 * info.numel * info.param.element_size() for info in apart)
    held = twice + sum(4 * info.numel for info in shifts) + engine.direction.prepared_bytes()
    return held, frozenset(info.pid for info in apart)


def _small(engine: Engine, owners: Sequence[Owner]) -> tuple[list[ParamInfo], list[ParamInfo]]:
    """Vectors and matrices of adapters that modules need perturbed, and biases that go into a left
    factor."""
    apart: dict[int, ParamInfo] = {}
    shifts: dict[int, ParamInfo] = {}
    for _, module, own in owners:
        for info in own:
            few = info.numel <= SMALL and (info.is_vector or _is_adapter(module, info))
            if few and engine.is_native(info):
                (shifts if _is_shift(engine, module, own, info) else apart)[info.pid] = info
    return list(apart.values()), list(shifts.values())


def _is_adapter(module: nn.Module, info: ParamInfo) -> bool:
    """Whether a matrix is an adapter's, so that all there are take little."""
    return is_plain(module, nn.Linear) and is_adapter(info.name)


def _is_shift(engine: Engine, module: nn.Module, own: list[ParamInfo], info: ParamInfo) -> bool:
    if not is_plain(module, nn.Linear) or info.param is not module.bias:
        return False
    weights: Iterator[ParamInfo] = (one for one in own if one.param is module.weight)
    return any(engine.direction.factor_bytes(one) is not None for one in weights)
