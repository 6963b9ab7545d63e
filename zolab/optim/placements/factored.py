"""Linear layers whose perturbation is a product of thin factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.optim.engine import Engine
from zolab.optim.linear import multiplier
from zolab.optim.native.products import by_columns
from zolab.optim.native.thin import Thin, takes_thin
from zolab.optim.parameters import ParamInfo


class ThinLinear:
    """A linear layer whose z is a product of thin factors, by the native kernels.

    Args:
        module: the layer.
        weight: its weight.
        bias: its bias, if that is perturbed.

    Attributes:
        pids: parameters that must not have been perturbed by an outer module.
        thin: adds what the perturbation makes of a batch.
    """

    thin: Thin

    def __init__(self, module: nn.Linear, weight: ParamInfo, bias: ParamInfo | None) -> None:
        self.module = module
        self.weight, self.bias = weight, bias
        self.pids = frozenset(info.pid for info in (weight, bias) if info is not None)
        self._clean: tuple[Tensor, Tensor | None] | None = None

    def aim(
        self,
        clean: Mapping[int, Tensor],
        factors: tuple[Tensor, Tensor],
        eps: Sequence[float],
        signs: Sequence[float],
        z: Callable[[ParamInfo], Tensor],
    ) -> bool:
        """Take what an evaluation needs, if the kernels are for it: whether they are.

        Args:
            clean: clean weights, by id.
            factors: left (m, r) and right (n, r) of the weight's z.
            eps: perturbation scale of each group.
            signs: one for the whole batch, or one for each half of the rows.
            z: whole z of the bias, float32 (m,).
        """
        weight, (left, right), added = clean[self.weight.pid], factors, self.bias
        if weight.dtype is not torch.float32 or not weight.is_cpu:
            return False
        if not (takes_thin(left.shape[1]) and right.T.is_contiguous()):
            return False
        if not left.T.is_contiguous():
            (left,) = by_columns([left])
        scale, shift, bias = eps[self.weight.group], None, self.module.bias
        if added is not None:
            shift, bias = (z(added), eps[added.group] / scale), clean[added.pid]
        scales = [sign * scale for sign in signs]
        thin = self.__dict__.get("thin")
        if thin is not None and thin.fits(left, right, scales):
            thin.aim(left, right, scales, shift)
        else:
            self.thin = Thin(left, right, scales, shift)
        self._clean = weight, None if bias is None else bias.detach()
        self._multiply = multiplier(self.module)
        return True

    def rest(self) -> None:
        """Hold nothing until the next evaluation."""
        self._clean = None
        self.thin.rest()

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor | None:
        """Output for a batch, None where the kernels are not made for it.

        Args:
            x: (rows, ..., n), rows a multiple of the number of signs.
            relu: give relu of the output.
        """
        # Under autocast a product comes out in 16 bits.
        if torch.is_autocast_enabled("cpu") or x.shape[0] % self.thin.parts:
            return None
        if not self.thin.takes(x):
            return None
        out = self._multiply(x, *self._clean)
        return out if self.thin.add_(out, x, relu) else None


def along_factors(
    engine: Engine,
    module: nn.Linear,
    own: list[ParamInfo],
    clean: Mapping[int, Tensor],
    x: Tensor,
    seed: int,
    eps: Sequence[float],
    signs: Sequence[float],
) -> Tensor | None:
    """Output of a linear layer, one product with the weight as it is for all signs, and two thin
    ones; None where its z is no product of thin factors.

    Args:
        engine: noise and masks.
        module: the layer.
        own: its trained parameters that are to be perturbed.
        clean: their clean weights, by id.
        x: (rows, ..., n), rows a multiple of the number of signs.
        seed: direction.
        eps, signs: see `ThinLinear.aim`.
    """
    by_param = {id(info.param): info for info in own}
    info, added = by_param.get(id(module.weight)), by_param.get(id(module.bias))
    if info is None or x.shape[0] % len(signs):
        return None
    weight = clean[info.pid]
    thin = engine.factors(info, weight, seed)
    if thin is None:
        return None

    def z(one: ParamInfo) -> Tensor:
        return engine.whole_z(one, clean[one.pid], seed)

    made = ThinLinear(module, info, added)
    out = made(x) if made.aim(clean, thin, eps, signs, z) else None
    if out is not None:
        return out
    scale, bias, shift = eps[info.group], module.bias, None
    if added is not None:
        bias, shift = clean[added.pid], (z(added), eps[added.group] / scale)
    out = multiplier(module)(x, weight, bias)
    return add_products_(out, x, *thin, [sign * scale for sign in signs], shift)


def add_products_(
    out: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    scales: Sequence[float],
    shift: tuple[Tensor, float] | None = None,
) -> Tensor:
    """out += scale ((x right) leftᵀ + shift), the batch cut into as many parts as there are scales.

    So x (W + scale left rightᵀ)ᵀ costs two thin products beside x Wᵀ, and x Wᵀ is made once for all
    parts.

    Args:
        out: (rows, ..., m), contiguous, changed in place: x Wᵀ with its bias.
        x: (rows, ..., n), rows a multiple of the number of scales.
        left: float32 (m, r).
        right: float32 (n, r).
        scales: one or two factors on the parts, in order of their rows.
        shift: what every row gets, float32 (m,), and a factor on it.

    Returns:
        out.
    """
    flat = out.view(-1, out.shape[-1])
    x = x.to(out.dtype).reshape(-1, x.shape[-1])
    thin = right.T.to(out.dtype).contiguous()
    if shift is not None:
        left = torch.cat((left, (shift[0] * shift[1])[:, None]), dim=1)
        thin = torch.cat((thin, thin.new_zeros(1, len(right))))
    # With few columns the transposed product is several times as fast as x @ right.
    inner = F.linear(x, thin)
    if shift is not None:
        inner[:, -1:] = 1.0
    for part, scale in zip(inner.chunk(len(scales)), scales, strict=True):
        part.mul_(scale)
    flat.addmm_(inner, left.T.to(out.dtype))
    return out
