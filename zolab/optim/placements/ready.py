"""What modules need in an evaluation, made for all of them at once when it begins.

Between two products every line of Python runs from cold caches, so as little as can be is left to
the time when a module is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from zolab.optim.engine import Engine
from zolab.optim.parameters import ParamInfo, is_adapter
from zolab.optim.placements.factored import ThinLinear
from zolab.optim.placements.normed import HalvesNorm
from zolab.optim.placements.rows import is_plain

#: Elements of a parameter that is small: calls for it would take longer than its work.
SMALL = 1 << 16

#: Name, module, and the trained parameters of its own.
Owner = tuple[str, nn.Module, list[ParamInfo]]

#: Vectors and matrices of adapters that modules need perturbed, and biases that go into a left
#: factor.
_Vectors = tuple[list[ParamInfo], list[ParamInfo]]


class Ready:
    """What one evaluation needs.

    Attributes:
        pairs: perturbed small parameters, by id.
        linear: linear layers along thin factors, by the id of the module.
        norms: layer normalisations of both halves, by the id of the module.
    """

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.linear: dict[int, ThinLinear] = {}
        self.norms: dict[int, HalvesNorm] = {}
        self._found: tuple[frozenset, _Vectors] | None = None
        self._plans: tuple[list[ThinLinear], list[HalvesNorm]] = [], []

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
        apart, shifts = self._look(engine, owners)
        self.pairs = engine.pairs(apart, [info.data for info in apart], seed, eps)
        if not engine.infos or not engine.direction.prepared_bytes():
            return
        engine.direction.prepare(seed, engine.infos[0].data.device)
        zs = engine.whole_zs(shifts, [info.data for info in shifts], seed)
        clean = {info.pid: info.data for info in engine.infos}
        linear, norms = self._plans
        for norm in norms if len(signs) == 2 else ():
            if norm.aim(lambda info: self.pairs.get(info.pid)):
                self.norms[id(norm.module)] = norm
        for plan in linear:
            factors = engine.factors(plan.weight, clean[plan.weight.pid], seed)
            if factors is None or (plan.bias is not None and plan.bias.pid not in zs):
                continue
            if plan.aim(clean, factors, eps, signs, lambda one: zs[one.pid]):
                self.linear[id(plan.module)] = plan

    def _look(self, engine: Engine, owners: Sequence[Owner]) -> _Vectors:
        """`_small` and what there is of modules, looked for once for each kind and place of the
        weights."""
        kind_of = engine.source.kind_of
        where = {
            (kind_of(info.pid), info.param.dtype, info.param.device): info
            for _, _, own in owners
            for info in own
        }
        key = frozenset((place, engine.is_native(info)) for place, info in where.items())
        if self._found is None or self._found[0] != key:
            self._found = key, _small(engine, owners)
            linear = [_linear(module, own) for _, module, own in owners]
            norms = [HalvesNorm.of(module, own) for _, module, own in owners]
            self._plans = tuple(
                [plan for plan in plans if plan is not None] for plans in (linear, norms)
            )
        return self._found[1]

    def clear(self) -> None:
        """The evaluation is over."""
        for plan in (*self.linear.values(), *self.norms.values()):
            plan.rest()
        self.pairs, self.linear, self.norms = {}, {}, {}


def _linear(module: nn.Module, own: list[ParamInfo]) -> ThinLinear | None:
    """A plain linear layer whose weight is perturbed, and that has no vectors but its bias."""
    if not is_plain(module, nn.Linear):
        return None
    weight = [info for info in own if info.param is module.weight]
    bias = [info for info in own if info.param is module.bias]
    vectors = [info for info in own if info.is_vector and info not in bias]
    return ThinLinear(module, weight[0], *(bias or [None])) if weight and not vectors else None


def ready_bytes(engine: Engine, owners: Sequence[Owner]) -> tuple[int, frozenset[int]]:
    """Bytes of what `Ready` holds over an evaluation, and ids of the parameters it perturbs."""
    apart, shifts = _small(engine, owners)
    twice = sum(2 * info.numel * info.param.element_size() for info in apart)
    held = twice + sum(4 * info.numel for info in shifts) + engine.direction.prepared_bytes()
    return held, frozenset(info.pid for info in apart)


def _small(engine: Engine, owners: Sequence[Owner]) -> _Vectors:
    """See `_Vectors`."""
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
