"""HELENE, as far as it can be reconstructed: annealed momentum over a bounded curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zolab.optim.backend import CHUNK, Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.sgd import Rule

CLIPS = ("quantile", "constant")


class Helene(Rule):
    """Reconstruction of HELENE (arXiv 2411.10696); no code and no constants were published.

    With g = Σ_j c_j z_j / n the estimate and each tensor a layer i:

        α_t = β1 + (1 - β1) exp(-t/T)                          annealing (off: 1)
        m   ← β1 m + α_t g                                     momentum (off: m = α_t g)
        h   ← β2 h + (1 - β2) B g ⊙ g, every k steps           hessian (off: denominator 1)
        θ_i ← (1 - ηλ) θ_i - η m / (γ max(h, λ_i) + ϵ)         layer_clip (off: λ_i = 0)

    g ⊙ g is the SPSA form of A-GNB. With one probe E[(c z)_i²] = ‖∇L‖² + 2 (∇L)_i², so h is almost
    one number for all coordinates: it normalises the step and tells layers apart only through λ_i
    (`spread` shows it). With all switches off and β1 of no effect this is MeZO. m settles at
    α / (1 - β1) times g and the denominator has the size of ‖∇L‖², so MeZO's lr does not carry
    over. State: m and h, two float32 numbers a weight; a switch turned off keeps none.

    Args:
        annealing, momentum, hessian, layer_clip: the four switches; layer_clip bounds h, so it
            does nothing without hessian.
        beta1, beta2: decays of m and h.
        anneal_steps: T, steps; a tenth of the run is ours.
        hessian_every: k, steps between looks at the curvature, the first at step 1.
        batch_factor: B of B g ⊙ g: the batch size as in Sophia, or 1 (sources differ).
        gamma: γ > 0.
        clip: "constant" takes λ_i = clip_value; "quantile" that quantile of the layer's h at the
            first look after `warmup_steps`. Until then its denominator is 1: h starts at 0, and a
            bound from so few looks would let through steps of any size.
        clip_value: λ >= 0, or a quantile in [0, 1].
        warmup_steps: steps.
        damping: ϵ > 0.
    """

    stateful = True
    buffers = 2

    def __init__(
        self,
        annealing: bool = True,
        momentum: bool = True,
        hessian: bool = True,
        layer_clip: bool = True,
        beta1: float = 0.9,
        beta2: float = 0.99,
        anneal_steps: float = 100.0,
        hessian_every: int = 10,
        batch_factor: float = 1.0,
        gamma: float = 1.0,
        clip: str = "constant",
        clip_value: float = 1.0,
        warmup_steps: int = 100,
        damping: float = 1e-8,
    ) -> None:
        for key, value, fine, allowed in (
            ("beta1", beta1, 0.0 <= beta1 < 1.0, "0 <= beta1 < 1"),
            ("beta2", beta2, 0.0 <= beta2 < 1.0, "0 <= beta2 < 1"),
            ("anneal_steps", anneal_steps, anneal_steps > 0, "a number > 0"),
            ("hessian_every", hessian_every, hessian_every >= 1, "at least 1"),
            ("batch_factor", batch_factor, batch_factor > 0, "a number > 0"),
            ("gamma", gamma, gamma > 0, "a number > 0"),
            ("clip", clip, clip in CLIPS, ", ".join(CLIPS)),
            ("clip_value", clip_value, clip_value >= 0, "a number >= 0"),
            ("clip_value", clip_value, clip != "quantile" or clip_value <= 1, "a quantile <= 1"),
            ("damping", damping, damping > 0, "a number > 0"),
        ):
            if not fine:
                raise ValueError(f"rule.{key} = {value}: expected {allowed}")
        self.annealing, self.momentum = annealing, momentum
        self.hessian, self.layer_clip = hessian, layer_clip
        self.per_weight = int(momentum) + int(hessian)
        self.beta1, self.beta2 = beta1, beta2
        self.anneal_steps, self.hessian_every = anneal_steps, hessian_every
        self.batch_factor, self.gamma = batch_factor, gamma
        self.clip, self.clip_value = clip, clip_value
        self.warmup_steps, self.damping = warmup_steps, damping
        self._m: dict[str, Tensor] = {}
        self._h: dict[str, Tensor] = {}
        self._floor: dict[str, float] = {}

    def alpha(self, step: int) -> float:
        """α_t of a step, from 1."""
        if not self.annealing:
            return 1.0
        return self.beta1 + (1.0 - self.beta1) * math.exp(-step / self.anneal_steps)

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        if mask is False:
            return
        weight = info.data.view(-1)
        keep = mask.view(-1) if isinstance(mask, Tensor) else None
        m = self._held(self._m, info.name, weight) if self.momentum else None
        h = self._held(self._h, info.name, weight) if self.hessian else None
        look = h is not None and (update.step - 1) % self.hessian_every == 0
        if look:
            weigh = (1.0 - self.beta2) * self.batch_factor
            for part in _chunks(weight):
                g = _estimate(engine, info, update, weight, part, keep)
                h[part] = h[part] * self.beta2 + g * g * weigh
            self._bound(info.name, h, update.step)
        floor = self._floor.get(info.name) if self.layer_clip else 0.0
        lr, alpha = update.lr[info.group], self.alpha(update.step)
        move = Term(-lr, update.seeds[0], 1.0 - lr * update.weight_decay[info.group], stochastic)
        for part in _chunks(weight):
            g = _estimate(engine, info, update, weight, part, keep).mul_(alpha)
            if m is not None:
                g = m[part].mul_(self.beta1).add_(g).clone()
            if h is not None and floor is not None:
                g /= h[part].clamp(min=floor).mul_(self.gamma).add_(self.damping)
            chosen = None if keep is None else keep[part]
            apply_term_(weight[part], g, move, info.pid, part.start, chosen)

    def spread(self, low: float = 0.05, high: float = 0.95) -> dict[str, tuple[float, float]]:
        """Two quantiles of h by parameter, over the coordinates it has seen; a diagnostic."""
        seen = {name: h[h > 0] for name, h in self._h.items()}
        return {name: (_quantile(h, low), _quantile(h, high)) for name, h in seen.items() if len(h)}

    def shift(self, name: str, device: torch.device) -> None:
        for store in (self._m, self._h):
            if name in store:
                store[name] = store[name].to(device)

    def state(self) -> dict[str, Tensor]:
        floors = {k: torch.tensor(v, dtype=torch.float64) for k, v in self._floor.items()}
        held = (("m", self._m), ("h", self._h), ("floor", floors))
        return {f"{name}/{kind}": v for kind, store in held for name, v in store.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._m, self._h, self._floor = {}, {}, {}
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            if kind == "floor":
                self._floor[name] = float(value)
            else:
                (self._m if kind == "m" else self._h)[name] = value

    def _bound(self, name: str, h: Tensor, step: int) -> None:
        """λ_i after h has changed."""
        if not self.layer_clip:
            return
        if self.clip == "constant":
            self._floor[name] = self.clip_value
        elif step > self.warmup_steps and name not in self._floor:
            seen = h[h > 0]
            if len(seen):
                self._floor[name] = _quantile(seen, self.clip_value)

    @staticmethod
    def _held(store: dict[str, Tensor], name: str, weight: Tensor) -> Tensor:
        if name not in store:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            store[name] = torch.zeros_like(weight, dtype=wide)
        return store[name]


def _chunks(weight: Tensor) -> list[slice]:
    return [slice(i, min(i + CHUNK, len(weight))) for i in range(0, len(weight), CHUNK)]


def _estimate(
    engine: Engine,
    info: ParamInfo,
    update: Update,
    weight: Tensor,
    part: slice,
    keep: Tensor | None,
) -> Tensor:
    """g of some elements of a parameter, 0 where the mask says no; float32, float64 for float64."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    g = torch.zeros(part.stop - part.start, dtype=wide, device=weight.device)
    for c, seed in zip(update.coefficients(info.group), update.seeds, strict=True):
        z = engine.source.z(info.pid, seed, part.start, len(g), weight.device)
        g.add_(z.to(wide) * c)
    return g if keep is None else g.masked_fill_(~keep[part], 0.0)


def _quantile(values: Tensor, q: float) -> float:
    """The element of rank ceil(q n), at least the first; torch.quantile stops at 16M elements."""
    rank = max(1, math.ceil(q * len(values)))
    return float(torch.kthvalue(values, rank).values)
