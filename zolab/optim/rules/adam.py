"""Adam on the gradient estimate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zolab.optim.backend import Term
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import Divisor, Look, Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import kept, probes
from zolab.optim.rules.history import Replayable

FORMS = ("torch", "transformers")


class Adam(Replayable):
    """MeZO-Adam (arXiv 2305.17333, section 2.2), ZO-Adam of ZO-Bench: Adam on g = Σ_j c_j z_j / n.

    m ← β1 m + (1-β1) g, v ← β2 v + (1-β2) g², θ ← (1-ηλ) θ - η m̂ / (√v̂ + ϵ), m̂ = m / (1-β1^t),
    v̂ = v / (1-β2^t): `torch.optim.Adam` on an explicit gradient (decay decoupled). State: "stored"
    keeps m and v in float32, two numbers per weight; "replayed" keeps only the seeds and
    coefficients of the last `window` steps and makes both moments anew, chunk by chunk, exactly
    until step `window` and then cut off there (and corrected for that): no state, `window` times
    the noise.

    Args:
        beta1, beta2: decay of the moments, 0 <= beta < 1.
        adam_eps: ϵ > 0.
        form: where ϵ stands. "torch" as above; "transformers": as AdamW of transformers 4.28, which
            MeZO's code uses: η √(1-β2^t) / (1-β1^t) · m / (√v + ϵ) and decay after the step.
        history: "stored" or "replayed".
        window: steps replayed moments reach back; None for the fewest with β^window < 1e-3.
    """

    stateful = True

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        adam_eps: float = 1e-8,
        form: str = "torch",
        history: str = "stored",
        window: int | None = None,
    ) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"rule.{name} = {beta}: expected 0 <= {name} < 1")
        if not adam_eps > 0.0:
            raise ValueError(f"rule.adam_eps = {adam_eps}: expected a number > 0")
        if form not in FORMS:
            raise ValueError(f"rule.form = {form!r}: expected one of {', '.join(FORMS)}")
        self.beta1, self.beta2, self.adam_eps = beta1, beta2, adam_eps
        self.form = form
        super().__init__(history, window, max(beta1, beta2))
        self.per_weight = 2 if self._past is None else 0
        self.buffers = 2 if self._past is None else 4
        self._m: dict[str, Tensor] = {}
        self._v: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}

    def moves(
        self, engine: Engine, info: ParamInfo, update: Update, stochastic: bool
    ) -> list[Term | Step]:
        if self._past is None:
            count = self._count[info.name] = self._count.get(info.name, 0) + 1
        else:
            count = len(self._past)
        if engine.stands_still(info):
            return []
        lr, seed = update.lr[info.group], update.seeds[0]
        decay = 1.0 - lr * update.weight_decay[info.group]
        bias1, root2 = 1.0 - self.beta1**count, math.sqrt(1.0 - self.beta2**count)
        if self.form == "torch":
            # By a product: plain torch divides by a scalar in another way on CUDA than on the CPU.
            divisor = Divisor(root=True, times=1.0 / root2, plus=self.adam_eps)
            return [self._step(info, Term(-lr / bias1, seed, decay, stochastic), divisor, update)]
        move = Term(-lr * root2 / bias1, seed, 1.0, stochastic)
        step = self._step(info, move, Divisor(root=True, plus=self.adam_eps), update)
        return [step, Term(0.0, seed, decay, stochastic)]

    def _step(self, info: ParamInfo, then: Term, divisor: Divisor, update: Update) -> Step:
        share1, share2 = 1.0 - self.beta1, 1.0 - self.beta2
        if self._past is None:
            m, v = kept(self._m, info), kept(self._v, info)
            now = probes(update, info.group)
            look = Look(now, first=(self.beta1, share1), second=(self.beta2, share2))
            return Step((look,), then, m, v, divisor)
        looks = []
        for past in self._past:
            looks.append(Look(probes(past, info.group), (1.0, share1), (1.0, share2)))
            share1, share2 = share1 * self.beta1, share2 * self.beta2
        return Step(tuple(looks), then, divisor=divisor)

    def shift(self, name: str, device: torch.device) -> None:
        for store in (self._m, self._v):
            if name in store:
                store[name] = store[name].to(device)

    def state(self) -> dict[str, Tensor]:
        if self._past is not None:
            return self._past.state()
        out = {}
        for name, m in self._m.items():
            count = torch.tensor(self._count[name])
            out |= {f"m.{name}": m, f"v.{name}": self._v[name], f"t.{name}": count}
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self._past is not None:
            self._past.load_state(state)
            return
        names = [key[2:] for key in state if key.startswith("m.")]
        self._m = {name: state[f"m.{name}"] for name in names}
        self._v = {name: state[f"v.{name}"] for name in names}
        self._count = {name: int(state[f"t.{name}"]) for name in names}
