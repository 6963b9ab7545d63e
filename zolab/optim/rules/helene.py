"""HELENE, as far as it can be reconstructed: annealed momentum over a bounded curvature."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from zolab.optim import fast
from zolab.optim.backend import Term
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import Divisor, Look, Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import descent, kept, probes
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

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        if engine.stands_still(info):
            return []
        m = kept(self._m, info) if self.momentum else None
        h = kept(self._h, info) if self.hessian else None
        look = Look(probes(update, info.group), (self.beta1, self.alpha(update.step)))
        if h is not None and (update.step - 1) % self.hessian_every == 0:
            seen = replace(look, second=(self.beta2, (1.0 - self.beta2) * self.batch_factor))
            if not self._set_bound(engine, info, update.step, seen):
                look = seen
        floor = self._floor.get(info.name) if self.layer_clip else 0.0
        divisor = None
        if h is not None and floor is not None:
            divisor = Divisor(floor, times=self.gamma, plus=self.damping)
        return [Step((look,), descent(update, info.group, stochastic), m, h, divisor)]

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

    def _set_bound(self, engine: Engine, info: ParamInfo, step: int, look: Look) -> bool:
        """λ_i once h has changed; True if h has been changed for that, which takes all of it."""
        name = info.name
        if not self.layer_clip:
            return False
        if self.clip == "constant":
            self._floor[name] = self.clip_value
            return False
        if step <= self.warmup_steps or name in self._floor:
            return False
        h = self._h[name]
        idle = Term(0.0, look.probes[0][1])
        engine.sweep_held(info, [Step((replace(look, first=None),), idle, second=h)])
        fast.settle()
        seen = h[h > 0]
        if len(seen):
            self._floor[name] = _quantile(seen, self.clip_value)
        return True


def _quantile(values: Tensor, q: float) -> float:
    """The element of rank ceil(q n), at least the first; torch.quantile stops at 16M elements."""
    rank = max(1, math.ceil(q * len(values)))
    return float(torch.kthvalue(values, rank).values)
