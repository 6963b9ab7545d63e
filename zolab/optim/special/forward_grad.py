"""Forward gradient: the exact directional derivative in place of a difference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from zolab.optim.engine import Update, half_precision
from zolab.optim.estimators import Estimate, Estimator, Point
from zolab.optim.memory import Memory, more
from zolab.optim.placements import Placement, Probe
from zolab.optim.placements.base import Closure, apply_now, as_closure
from zolab.optim.zero_order import StepRecord, ZeroOrder


class ForwardGrad(ZeroOrder):
    """Forward gradient (Baydin et al., arXiv 2202.08587; in ZO-Bench arXiv 2402.11592).

    g = (vᵀ∇L) v for one v = z per step, by forward-mode differentiation: no ε, and no graph. One
    pass with tangents (1 jvp, counted as 1 forward; it costs about two and holds a tangent beside
    each activation). State: v, one number per weight, while the pass runs. Weight decay as torch's
    SGD.

    The closure must return tensors (not floats) that still carry their tangents; one with a method
    `tensors` is asked through that.

    Args:
        model: the module that owns the parameters; required.
        placement: only None.
        params, lr, weight_decay, options: see `ZeroOrder`; there is no eps and no estimator.

    Raises:
        ValueError: no model.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        placement: Placement | None = None,
        **options: Any,
    ) -> None:
        if placement is not None:
            raise ValueError(
                f"placement {placement.name}: forward-gradient perturbs no weight, it needs every "
                "weight and its tangent on the device for one pass, so it takes no placement"
            )
        if model is None:
            raise ValueError("forward-gradient needs model=: the modules that own the weights")
        # eps = 1 makes coefficients, slopes and derivatives the same numbers.
        super().__init__(
            params, lr, 1.0, weight_decay, estimator=_Derivative(), placement=Untouched(),
            model=model, **options,
        )  # fmt: skip
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, param in module._parameters.items():
                if param is not None:
                    places.setdefault(id(param), []).append((module, name))
        self._places = [(info, places[id(info.param)]) for info in self.infos]

    def memory(self) -> Memory:
        tangents = making = 0
        for info in self.infos:
            # A tangent is drawn in float32, and copied where the weights are in another dtype.
            drawn = info.numel * 4 * (info.param.dtype != torch.float32)
            tangents += info.numel * info.param.element_size()
            making = max(making, tangents + drawn)
        # A linear layer has a tangent from its input and one from its weight: 5 tensors where a
        # forward holds 2. Attention has a tangent only in its plain form, which computes 16-bit
        # weights' in float32; its scores, rows * heads * tokens² numbers, are not known here and
        # count where texts are much longer than a head is wide.
        copies = 4 if any(half_precision(info.data) for info in self.infos) else 2.5
        memory = more(super().memory(), probing=tangents, between=making)
        return replace(memory, copies=copies)

    @torch.no_grad()
    def estimate(self, closure: Closure) -> float:
        # Not in inference mode, which knows no tangents.
        step = self.num_steps + 1
        self._pending = self._take(step, self._begin(step), as_closure(closure))
        return self._pending[0].loss

    def _take(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord, Update | None]:
        losses = getattr(closure, "tensors", closure)
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), self._tangents(probes[0].seed):
            loss = losses(1)[0]
            if not isinstance(loss, Tensor):
                raise TypeError(
                    "forward-gradient needs a closure that returns tensors with their tangents, "
                    f"not {type(loss).__name__}"
                )
            primal, tangent = forward_ad.unpack_dual(loss)
        slope = 0.0 if tangent is None else float(tangent)
        (value, slope) = (float(f"{x:.{self._digits}g}") for x in (float(primal), slope))
        slope, value = self.reduce([slope])[0], self.reduce([value])[0]
        finite = math.isfinite(value) and math.isfinite(slope)
        return self._record(step, (value,), (slope,) if finite else None, value)

    @contextmanager
    def _tangents(self, seed: int) -> Iterator[None]:
        """While active, the trained parameters carry v as their tangent."""
        engine = self.engine
        try:
            for info, places in self._places:
                mask = engine.mask_of(info)
                if mask is False:
                    continue
                v = engine.source.z(info.pid, seed, 0, info.numel, info.data.device)
                v = v.to(info.data.dtype).view(info.data.shape)
                if isinstance(mask, Tensor):
                    v = v.masked_fill(~mask, 0.0)
                dual = forward_ad.make_dual(info.data, v)
                for module, name in places:
                    module._parameters[name] = dual
            yield
        finally:
            for info, places in self._places:
                for module, name in places:
                    module._parameters[name] = info.param

    def _retrace(
        self,
        step: int,
        probes: list[Probe],
        slopes: tuple[float, ...] | None,
        lr: tuple[float, ...],
        extra: dict[str, Any],
    ) -> Update | None:
        return None if slopes is None else self._update(step, slopes, lr)


class _Derivative(Estimator):
    """One loss, at the weights as they are, with its derivative along one direction."""

    def plan(self, step: int) -> list[Point]:
        return [Point(0, 0.0)]

    def combine(self, losses: Sequence[float]) -> Estimate:
        raise NotImplementedError("the derivative does not come from losses")


class Untouched(Placement):
    """Weights are never perturbed; updates are applied at once."""

    name = "untouched"
    rounds = True

    def update(self, update: Update | None) -> None:
        if update is not None:
            apply_now(self.engine, self.rule, update)

    def flush(self) -> None:
        self.engine.drop_masks()
