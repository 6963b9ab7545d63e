"""Before the first step: is it true that each module reads only its own weights, row by row?

`Paired` and `PerLayer` rest on that. The check costs a few forwards on the first batch, changes
no weight and copies no model: outside their owners' `forward` the parameters read NaN, so a module
that reads another's weight turns the loss into NaN.
"""

from __future__ import annotations

import math
import warnings

import torch

from zolab.optim.parameters import ParamInfo
from zolab.optim.placements import InPlace, Paired, PerLayer
from zolab.optim.placements.base import Closure
from zolab.optim.placements.modulewise import ModuleWise, RowsError
from zolab.optim.placements.paired import CleanWeights
from zolab.optim.zero_order import ZeroOrder

#: Largest difference between both ways of evaluating, times max(1, |loss|), by weight dtype.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


class SelfCheckError(RuntimeError):
    """The placement would compute something else than the losses at theta ± eps z."""


@torch.inference_mode()
def check_reads(optimizer: ZeroOrder, closure: Closure, seed: int = 1) -> tuple[float, float]:
    """The two losses by one sign at a time, with parameters poisoned outside their owners.

    Raises:
        SelfCheckError: a module reads a weight that it does not own; names it.
    """
    modules = _modules(optimizer)
    eps = [group["eps"] for group in optimizer.param_groups]
    losses = [_poisoned(modules, closure, seed, [sign * e for e in eps]) for sign in (1.0, -1.0)]
    if all(math.isfinite(loss) for loss in losses):
        return losses[0], losses[1]
    with modules.evaluating(seed, eps, 1.0):
        plain = float(closure(1)[0])
    if not math.isfinite(plain):
        raise SelfCheckError("the loss on the first batch is not finite")
    culprit = _find_reader(modules, closure, seed, eps)
    raise SelfCheckError(f"{culprit} is read outside the forward of the module that owns it")


@torch.inference_mode()
def check_paired(
    optimizer: ZeroOrder, closure: Closure, expected: tuple[float, float], seed: int = 1
) -> None:
    """Compare one doubled batch with `expected`, the losses of one sign at a time.

    Raises:
        SelfCheckError: rows are not laid out as halves, or the losses differ; names the module.
    """
    modules = _modules(optimizer)
    modules.extra_rows = getattr(closure, "leading_rows", tuple)
    eps = [group["eps"] for group in optimizer.param_groups]
    try:
        with modules.evaluating(seed, eps, None):
            losses = [float(loss) for loss in closure(2)]
    except RowsError as error:
        raise SelfCheckError(str(error)) from error
    # of frozen weights too: what is computed is no finer than they are
    dtypes = {p.dtype for p in modules.model.parameters()} & TOLERANCE.keys()
    dtypes.add(getattr(closure, "compute_dtype", None) or optimizer.infos[0].param.dtype)
    tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
    for got, want in zip(losses, expected, strict=True):
        if not abs(got - want) <= tolerance * max(1.0, abs(want)):
            raise SelfCheckError(
                f"a doubled batch gives loss {got:.6g} where one sign at a time gives {want:.6g}"
            )


def settle_placement(optimizer: ZeroOrder, closure: Closure) -> None:
    """Check the optimizer's placement on the first batch and fall back where it cannot work.

    `Paired` falls back to `PerLayer`, that to `InPlace` (wide weights only); a warning says why.
    `Offload` has nothing to fall back on.

    Raises:
        SelfCheckError: 16-bit weights and neither can work, or the placement cannot fall back.
    """
    if not isinstance(optimizer.placement, CleanWeights):
        return
    try:
        expected = check_reads(optimizer, closure)
    except SelfCheckError as error:
        if not optimizer.placement.keeps_weights:
            raise SelfCheckError(_cannot(optimizer, error)) from error
        half = {info.param.dtype for info in optimizer.infos} & {torch.bfloat16, torch.float16}
        if half:
            raise SelfCheckError(
                f"placement {optimizer.placement.name} cannot evaluate this model: {error}; "
                "in_place would lose updates in 16 bits, so set model.dtype=float32"
            ) from error
        warnings.warn(f"placement {optimizer.placement.name} -> in_place: {error}", stacklevel=2)
        optimizer.use_placement(InPlace())
        return
    if isinstance(optimizer.placement, Paired):
        try:
            check_paired(optimizer, closure, expected)
        except SelfCheckError as error:
            if not optimizer.placement.keeps_weights:
                raise SelfCheckError(_cannot(optimizer, error)) from error
            warnings.warn(f"placement paired -> per_layer: {error}", stacklevel=2)
            optimizer.use_placement(PerLayer())


def _cannot(optimizer: ZeroOrder, error: Exception) -> str:
    name = optimizer.placement.name
    return (
        f"placement {name} cannot evaluate this model ({error}), and with its weights elsewhere "
        "there is nothing to fall back on; placement=per_layer or in_place hold them in memory"
    )


def _modules(optimizer: ZeroOrder) -> ModuleWise:
    if not isinstance(optimizer.placement, CleanWeights):
        raise TypeError(f"placement {optimizer.placement.name} perturbs the weights themselves")
    return optimizer.placement.modules


def _poisoned(modules: ModuleWise, closure: Closure, seed: int, eps: list[float]) -> float:
    with modules.evaluating(seed, eps, 1.0, poison=True):
        try:
            return float(closure(1)[0])
        except (RuntimeError, ValueError):
            return math.nan  # poisoned weights may also trip a check inside the model


def _find_reader(modules: ModuleWise, closure: Closure, seed: int, eps: list[float]) -> str:
    """Name of the parameter that is read from outside, found by poisoning one at a time."""
    everything = modules.engine.infos
    for info in everything:
        if not math.isfinite(_poison_one(modules, info, closure, seed, eps)):
            return f"parameter {info.name}"
    return "some parameter"


def _poison_one(
    modules: ModuleWise, info: ParamInfo, closure: Closure, seed: int, eps: list[float]
) -> float:
    with modules.evaluating(seed, eps, 1.0, poison=info.pid):
        try:
            return float(closure(1)[0])
        except (RuntimeError, ValueError):
            return math.nan
