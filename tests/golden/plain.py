"""Each program's loop written out in plain torch, to record traces of any combination of keys.

Nothing of `zolab.optim` is used: gradients are written into `.grad` and torch's optimizers step,
derivatives come from back-propagation. Model, weights and batches are those of the harness.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.batches import loss_of
from tests.golden.start import build, summary
from tests.golden.trace import Trace, read_trace

BLOCK_MARKS = ("layers", "layer")


def record(raw: dict[str, Any], path: Path, num_steps: int = 4) -> None:
    """Run the program that `raw` describes (all but its numbers) and write the whole file."""
    hyper = {"np_seed": 0, "lr": 1e-3, "zo_eps": 1e-3, "weight_decay": 0.0, **raw["hyper"]}
    raw = {**raw, "hyper": {**hyper, "steps": num_steps}, "init": "formula-v1"}
    raw |= {"init_checksums": raw.get("init_checksums", {}), "z_probe_first_seed": {}}
    raw["steps"] = [{"step": 0, "losses": []}]
    path.write_text(json.dumps(raw))
    trace = read_trace(path)
    with torch.no_grad():
        _, named = build(trace)
    raw["init_checksums"] = {name: summary(p) for name, p in named.items()}
    path.write_text(json.dumps(raw))
    run = _Run(read_trace(path))
    raw["steps"] = [run.step(number) for number in range(num_steps)]
    path.write_text(json.dumps(raw))


class _Run:
    def __init__(self, trace: Trace) -> None:
        self.trace, self.hyper = trace, trace.hyper
        self.model, self.named = build(trace)
        self.trained = {name: self.named[name] for name in trace.order}
        self.random = np.random.RandomState(self.hyper["np_seed"])
        self.optimizer = self._optimizer()
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.count = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        params, lr = list(self.trained.values()), self.hyper["lr"]
        if self.trace.program == "zobench" and (
            self.hyper.get("trainer") == "zo_adam" or self.hyper.get("optimizer") == "adam"
        ):
            return torch.optim.Adam(params, lr=lr)
        momentum = self.hyper.get("momentum", 0.0) if self.trace.program == "zobench" else 0.0
        return torch.optim.SGD(params, lr=lr, momentum=momentum)

    # -- one step --------------------------------------------------------------------------------

    def step(self, number: int) -> dict[str, Any]:
        hyper = self.hyper
        self.lr = hyper["lr"]
        if hyper.get("lr_scheduler") == "linear":
            self.lr *= 1 - number / hyper["steps"]
        out: dict[str, Any] = {"step": number, "lr": self.lr}
        if self.trace.program == "zobench":
            out["sparse_seed"] = self._draw()
        decoded: list[str] = []
        closure = loss_of(self.trace, self.model, number, decoded)
        self.loss: Callable[[], Tensor] = lambda: closure(1)[0].detach()
        if hyper.get("trainer") == "forward_grad":
            out |= self._forward_grad(lambda: closure(1)[0])
        else:
            with torch.no_grad():
                out |= self._zeroth_order(number)
        if self.trace.objective == "f1":
            out["decoded"] = decoded
        out["params"] = {name: summary(p) for name, p in self.trained.items()}
        return out

    def _zeroth_order(self, number: int) -> dict[str, Any]:
        hyper, names = self.hyper, list(self.trained)
        if hyper.get("module_wise_perturbation"):
            return self._module_wise()
        if hyper.get("trainer") == "zo_conserv":
            return self._conservative()
        n = int(hyper.get("q") or hyper.get("zero_order_sample") or 1)
        if hyper.get("zero_order_sample_scheduler") == "linear":
            n = max(1, math.floor(number / hyper["steps"] * n))
        seeds, losses, coefficients = [], [], []
        grads = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        for _ in range(n):
            seeds.append(self._draw())
            c = self._probe(seeds[-1], names, losses)
            coefficients.append(float(c))
            if hyper.get("trainer") == "zo_sign_opt":
                c = np.sign(float(c))
            for name, z in self._noise(seeds[-1], names):
                grads[name] += float(c) * z / n
        self._apply(grads)
        out = {"seeds": seeds, "losses": losses}
        if self.trace.program == "mezo_medium":
            return {**out, "projected_grads_from_losses": coefficients}
        return {**out, "projected_grad": coefficients[-1]}

    def _probe(self, seed: int, names: list[str], losses: list[float]) -> Tensor:
        """Walk along z and back, and take the difference quotient in the dtype of the loss."""
        eps = self.hyper["zo_eps"]
        one_side = self.hyper.get("perturbation_mode") == "one_side"
        self._walk(seed, names, 1)
        plus = self.loss()
        self._walk(seed, names, -1 if one_side else -2)
        other = self.loss()
        if not one_side:
            self._walk(seed, names, 1)
        losses += [float(plus), float(other)]
        return (plus - other) / (eps if one_side else 2 * eps)

    def _module_wise(self) -> dict[str, Any]:
        seed = self._draw()
        losses: list[float] = []
        waiting: dict[str, Tensor] = {}
        for names in self._blocks():
            c = float(self._probe(seed, names, losses))
            scale = np.sign(c) if self.hyper.get("trainer") == "zo_sign_opt" else c
            grads = {name: scale * z for name, z in self._noise(seed, names)}
            if self.hyper.get("coordinate_perturbation"):
                self._apply(grads)
            else:
                waiting |= grads
        if waiting:
            self._apply(waiting)
        return {"seeds": [seed], "losses": losses, "projected_grad": c}

    def _blocks(self) -> list[list[str]]:
        """Layers by number; what is in none is a block per module, unless the note says frozen."""
        blocks: dict[str, list[str]] = {}
        for name in self.trained:
            parts = name.split(".")
            at = next((i for i, part in enumerate(parts) if part in BLOCK_MARKS), None)
            if at is not None:
                blocks.setdefault(".".join(parts[: at + 2]), []).append(name)
            elif "frozen" not in self.trace.note:
                blocks.setdefault(".".join(parts[:-1]), []).append(name)
        return list(blocks.values())

    def _conservative(self) -> dict[str, Any]:
        seed, names = self._draw(), list(self.trained)
        losses = [float(self.loss())]
        c = float(self._probe(seed, names, losses))
        start = {name: p.clone() for name, p in self.trained.items()}
        sides = [start]
        for sign in (1.0, -1.0):
            moved = {
                name: start[name] - sign * self.lr * c * z for name, z in self._noise(seed, names)
            }
            sides.append(moved)
            self._set(moved)
            losses.append(float(self.loss()))
        tried = [losses[0], losses[3], losses[4]]
        self._set(sides[tried.index(min(tried))])
        return {"seeds": [seed], "losses": losses, "projected_grad": c}

    def _forward_grad(self, loss_with_graph: Callable[[], Tensor]) -> dict[str, Any]:
        """The derivative along v by back-propagation."""
        seed = self._draw()
        for p in self.trained.values():
            p.grad = None
        loss = loss_with_graph()
        loss.backward()
        noise = dict(self._noise(seed, list(self.trained)))
        slope = float(sum((p.grad * noise[name]).sum() for name, p in self.trained.items()))
        with torch.no_grad():
            exempt = ("bias", "layer_norm", "layernorm")
            grads = {}
            for name, z in noise.items():
                rate = 0.0 if any(m in name for m in exempt) else self.hyper["weight_decay"]
                grads[name] = slope * z + rate * self.named[name]
            self._apply(grads)
        return {"seeds": [seed], "losses": [float(loss.detach())], "projected_grad": slope,
                "perturb_scales": []}  # fmt: skip

    # -- pieces ----------------------------------------------------------------------------------

    def _draw(self) -> int:
        return int(self.random.randint(1000000000))

    def _noise(self, seed: int, names: list[str]):
        torch.manual_seed(seed)
        for name in names:
            p = self.trained[name]
            yield name, torch.normal(mean=0, std=1, size=p.shape, dtype=p.dtype)

    def _walk(self, seed: int, names: list[str], scale: int) -> None:
        for name, z in self._noise(seed, names):
            p = self.trained[name]
            p.data = p.data + scale * z * self.hyper["zo_eps"]

    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.trained[name].data = value.clone()

    def _apply(self, grads: dict[str, Tensor]) -> None:
        program, decay = self.trace.program, self.hyper["weight_decay"]
        trainer_path = self.hyper.get("zero_order_use_trainer_optim")
        if program == "zobench":
            for name, p in self.trained.items():
                p.grad = grads.get(name)
            self.optimizer.param_groups[0]["lr"] = self.lr
            self.optimizer.step()
            return
        if trainer_path and self.hyper.get("optimizer") == "adam":
            self._adamw(grads)
            return
        exempt: tuple[str, ...] = ()
        if program in ("mezo_large", "zo2"):
            exempt = ("bias", "layer_norm", "layernorm") + (("ln",) if program == "zo2" else ())
        for name, g in grads.items():
            rate = 0.0 if any(mark in name for mark in exempt) else decay
            p = self.trained[name]
            p.data = p.data - self.lr * (g + rate * p.data)

    def _adamw(self, grads: dict[str, Tensor]) -> None:
        """AdamW as transformers 4.28 has it, without decay."""
        self.count += 1
        bias = math.sqrt(1 - 0.999**self.count) / (1 - 0.9**self.count)
        for name, g in grads.items():
            m, v = self.moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.moments[name] = (m, v)
            p = self.trained[name]
            p.data = p.data - self.lr * bias * m / (v.sqrt() + 1e-8)
