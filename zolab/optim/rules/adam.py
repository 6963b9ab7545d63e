"""Adam on the gradient estimate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zolab.optim.backend import Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules.gradient import Chunk, chunks, gradient, wide_dtype
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
        self.buffers = 1 if self._past is None else 3
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._count: dict[str, int] = {}

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        if self._past is None:
            count = self._count[info.name] = self._count.get(info.name, 0) + 1
        else:
            count = len(self._past)
        bias1, bias2 = 1.0 - self.beta1**count, 1.0 - self.beta2**count
        lr, seed = update.lr[info.group], update.seeds[0]
        decay = 1.0 - lr * update.weight_decay[info.group]
        if self.form == "torch":
            terms = [Term(-lr / bias1, seed, decay, stochastic)]
        else:
            step = Term(-lr * math.sqrt(bias2) / bias1, seed, 1.0, stochastic)
            terms = [step, Term(0.0, seed, decay, stochastic)]
        for chunk in chunks(info, mask):
            m, v = self._now(engine, info, update, chunk)
            root = v.sqrt()
            if self.form == "torch":
                root.div_(math.sqrt(bias2))
            move = m / root.add_(self.adam_eps)
            for term in terms:
                apply_term_(chunk.weight, move, term, info.pid, chunk.start, chunk.mask)

    def _now(
        self, engine: Engine, info: ParamInfo, update: Update, chunk: Chunk
    ) -> tuple[Tensor, Tensor]:
        """Both moments of one chunk after this step."""
        if self._past is not None:
            return self._made_anew(engine, info, chunk)
        if info.name not in self._moments:
            flat = info.data.view(-1)
            m, v = (torch.zeros_like(flat, dtype=wide_dtype(info)) for _ in range(2))
            self._moments[info.name] = (m, v)
        part = slice(chunk.start, chunk.start + len(chunk.weight))
        m, v = (moment[part] for moment in self._moments[info.name])
        g = gradient(engine, info, update, chunk)
        m.lerp_(g, 1.0 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1.0 - self.beta2)
        return m, v

    def _made_anew(self, engine: Engine, info: ParamInfo, chunk: Chunk) -> tuple[Tensor, Tensor]:
        m, v = (torch.zeros_like(chunk.weight, dtype=wide_dtype(info)) for _ in range(2))
        share1, share2 = 1.0 - self.beta1, 1.0 - self.beta2
        for past in self._past:
            g = gradient(engine, info, past, chunk)
            m.add_(g, alpha=share1)
            v.addcmul_(g, g, value=share2)
            share1, share2 = share1 * self.beta1, share2 * self.beta2
        return m, v

    def shift(self, name: str, device: torch.device) -> None:
        if name in self._moments:
            m, v = self._moments[name]
            self._moments[name] = (m.to(device), v.to(device))

    def state(self) -> dict[str, Tensor]:
        if self._past is not None:
            return self._past.state()
        out = {}
        for name, (m, v) in self._moments.items():
            out |= {f"m.{name}": m, f"v.{name}": v, f"t.{name}": torch.tensor(self._count[name])}
        return out

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self._past is not None:
            self._past.load_state(state)
            return
        names = [key[2:] for key in state if key.startswith("m.")]
        self._moments = {name: (state[f"m.{name}"], state[f"v.{name}"]) for name in names}
        self._count = {name: int(state[f"t.{name}"]) for name in names}
