"""Every named method against its paper's equations, restated in a few lines of plain float64.

A restatement (`RESTATED`) sees weights by name, the loss at any weights and step, and the noise of
a seed; nothing of our estimators, masks, rules, placements or low-rank directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.optim.methods import METHODS, build, pairs
from tests.optim.small import Net, batch, losses_of
from zolab.optim import ForwardGrad, Gaussian, ZeroOrder
from zolab.optim.keys import permutation, probe_seed
from zolab.optim.masks import MASK_PROBE
from zolab.optim.philox import Stream, words

CPU, SEED, STEPS, LR, EPS = torch.device("cpu"), 3, 8, 1e-2, 1e-3
Weights = dict[str, Tensor]


class Plain:
    """What a restatement works with: weights `w`, losses and noise."""

    def __init__(self, model: Net, ids: dict[str, int]) -> None:
        self.model, self.ids = model, ids
        self.w: Weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(self, w: Weights, t: int) -> Tensor:
        x, y = batch(t)
        return F.cross_entropy(torch.func.functional_call(self.model, w, (x,)), y)

    def gauss(self, seed: int, name: str, *shape: int) -> Tensor:
        z = Gaussian().z(self.ids[name], seed, 0, math.prod(shape), CPU)
        return z.double().view(shape)

    def z(self, t: int, j: int = 0) -> Weights:
        return {n: self.gauss(probe_seed(SEED, t, j), n, *p.shape) for n, p in self.w.items()}

    def slope(self, z: Weights, t: int, w: Weights | None = None) -> Tensor:
        """c = (L(w + εz) - L(w - εz)) / 2ε"""
        w = self.w if w is None else w
        return (self.loss(add(w, EPS, z), t) - self.loss(add(w, -EPS, z), t)) / (2 * EPS)


def add(w: Weights, a: float | Tensor, z: Weights) -> Weights:
    return {name: value + a * z[name] if name in z else value for name, value in w.items()}


def mean(p: Plain, t: int, n: int) -> Weights:
    """1/n Σ_j c_j z_j"""
    zs = [p.z(t, j) for j in range(n)]
    cs = [p.slope(z, t) for z in zs]
    return {name: sum(c * z[name] for c, z in zip(cs, zs, strict=True)) / n for name in p.w}


# -- one generator a method: yields after each step --------------------------------------------


def spsa(number: Callable[[int], int]) -> Callable[[Plain], Iterator[None]]:
    def method(p: Plain) -> Iterator[None]:
        for t in range(1, STEPS + 1):
            p.w = add(p.w, -LR, mean(p, t, number(t)))
            yield

    return method


def one_sided(p: Plain) -> Iterator[None]:
    for t in range(1, STEPS + 1):
        start, clean = p.w, p.loss(p.w, t)
        for z in (p.z(t, j) for j in range(3)):
            p.w = add(p.w, -LR / 3 * (p.loss(add(start, EPS, z), t) - clean) / EPS, z)
        yield


def one_point(p: Plain) -> Iterator[None]:
    before, eps = None, METHODS["one_point"].options["eps"]
    for t in range(1, STEPS + 1):
        z = p.z(t)
        loss = p.loss(add(p.w, eps, z), t)
        if before is not None:
            p.w = add(p.w, -LR * (loss - before) / eps, z)
        before = loss
        yield


def momentum(beta: float) -> Callable[[Plain], Iterator[None]]:
    def method(p: Plain) -> Iterator[None]:
        m = {name: torch.zeros_like(v) for name, v in p.w.items()}
        for t in range(1, STEPS + 1):
            g = mean(p, t, 1)
            m = {name: beta * m[name] + g[name] for name in m}
            p.w = add(p.w, -LR, m)
            yield

    return method


def adam(beta1: float, beta2: float) -> Callable[[Plain], Iterator[None]]:
    def method(p: Plain) -> Iterator[None]:
        m = {name: torch.zeros_like(v) for name, v in p.w.items()}
        v = dict(m)
        for t in range(1, STEPS + 1):
            for name, g in mean(p, t, 1).items():
                m[name] = beta1 * m[name] + (1 - beta1) * g
                v[name] = beta2 * v[name] + (1 - beta2) * g**2
            step = {n: (m[n] / (1 - beta1**t)) / ((v[n] / (1 - beta2**t)).sqrt() + 1e-8) for n in m}
            p.w = add(p.w, -LR, step)
            yield

    return method


def masked(make: Callable[[Plain, int], Callable[[str], Tensor | bool]]):
    """MeZO on m ⊙ z; `make` gives m of a step from the weights as they are."""

    def method(p: Plain) -> Iterator[None]:
        for t in range(1, STEPS + 1):
            keep = make(p, t)
            z = {name: value * keep(name) for name, value in p.z(t).items()}
            p.w = add(p.w, -LR * p.slope(z, t), z)
            yield

    return method


def small(large: bool = False) -> Callable[[Plain, int], Callable[[str], Tensor | bool]]:
    """|θ| <= h_i, h_i the 25 % quantile of |θ0| in its matrix; turned around, |θ| >= the 75 %."""
    h: dict[str, Tensor] = {}

    def make(p: Plain, t: int) -> Callable[[str], Tensor | bool]:
        if t == 1:
            for n, v in p.w.items():
                ordered = v.abs().flatten().sort().values
                rank = math.floor(0.75 * len(ordered)) if large else math.ceil(len(ordered) / 4) - 1
                h[n] = ordered[rank]
        sign = -1 if large else 1
        return lambda n: p.w[n].dim() < 2 or sign * p.w[n].abs() <= sign * h[n]

    return make


def refreshed(p: Plain, t: int) -> Callable[[str], Tensor | bool]:
    """One quantile over all matrices, taken anew from the weights of steps 1, 4, 7."""
    if (t - 1) % 3 == 0:
        every = torch.cat([v.abs().flatten() for v in p.w.values() if v.dim() > 1]).sort().values
        p.h = every[math.ceil(len(every) / 4) - 1]
    h = p.h
    return lambda n: p.w[n].dim() < 2 or p.w[n].abs() <= h


def random(period: Callable[[int], int]) -> Callable[[Plain, int], Callable[[str], Tensor | bool]]:
    """A weight moves if its uniform number is below 1 - sparsity."""

    def make(p: Plain, t: int) -> Callable[[str], Tensor | bool]:
        def keep(n: str) -> Tensor | bool:
            seed, size = probe_seed(SEED, period(t), MASK_PROBE), p.w[n].numel()
            uniform = words(0, size, seed, p.ids[n], Stream.MASK) / 2**32
            return p.w[n].dim() < 2 or (uniform < 0.25).view(p.w[n].shape)

        return keep

    return make


def layers(p: Plain, t: int) -> Callable[[str], Tensor | bool]:
    chosen = int(permutation(probe_seed(SEED, t, MASK_PROBE), 0, 2)[0])
    return lambda n: not n.startswith("layers.") or n.startswith(f"layers.{chosen}.")


def orthonormal(drawn: Tensor) -> Tensor:
    """Gram and Schmidt, column by column."""
    columns: list[Tensor] = []
    for column in drawn.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


#: Where no side is twice the rank of 3, the most nearly square form is factorised.
FACTORED = {(6, 5): (5, 6), (6, 6): (6, 6), (7, 6): (7, 6), (3, 7): (3, 7)}
LEFT, RIGHT = (1 << 32) - 2, (1 << 32) - 3


def subzero(p: Plain) -> Iterator[None]:
    """z = √(mn)/r · U Z Vᵀ, U and V by QR every 3 steps."""
    for t in range(1, STEPS + 1):
        z = p.z(t)
        for name, w in p.w.items():
            if w.dim() < 2:
                continue
            (m, n), period = FACTORED[tuple(w.shape)], (t - 1) // 3
            r = min(3, m, n)
            u = orthonormal(p.gauss(probe_seed(SEED, period, LEFT), name, m, r))
            v = orthonormal(p.gauss(probe_seed(SEED, period, RIGHT), name, n, r))
            core = p.gauss(probe_seed(SEED, t, 0), name, r, r)
            z[name] = (math.sqrt(m * n) / r * u @ core @ v.T).view(w.shape)
        p.w = add(p.w, -LR * p.slope(z, t), z)
        yield


def lozo(beta: float | None) -> Callable[[Plain], Iterator[None]]:
    """W ← W - η c U Vᵀ / r; with momentum N ← βN + (1-β) c U / r, W ← W - η N Vᵀ."""

    def method(p: Plain) -> Iterator[None]:
        held: Weights = {}
        old: Weights = {}
        for t in range(1, STEPS + 1):
            z, factors = p.z(t), {}
            for name, w in p.w.items():
                if w.dim() > 1:
                    m, n = FACTORED[tuple(w.shape)]
                    r = min(3, m, n)
                    u = p.gauss(probe_seed(SEED, t, 0), name, m, r)
                    v = p.gauss(probe_seed(SEED, (t - 1) // 3, RIGHT), name, n, r)
                    factors[name] = (u, v)
                    z[name] = (u @ v.T).view(w.shape)
            c = p.slope(z, t)
            step = {name: c * value for name, value in z.items()}
            for name, (u, v) in factors.items():
                r = u.shape[1]
                if beta is None:
                    step[name] = step[name] / r
                    continue
                before = held.get(name, torch.zeros_like(u))
                if (t - 1) % 3 == 0 and t > 1:
                    before = before @ old[name].T @ v / len(v)
                held[name], old[name] = beta * before + (1 - beta) * c * u / r, v
                step[name] = (held[name] @ v.T).view(step[name].shape)
            p.w = add(p.w, -LR, step)
            yield

    return method


def helene(p: Plain) -> Iterator[None]:
    m = {name: torch.zeros_like(v) for name, v in p.w.items()}
    h = dict(m)
    for t in range(1, STEPS + 1):
        alpha = 0.9 + 0.1 * math.exp(-t / 100)
        for name, g in mean(p, t, 1).items():
            m[name] = 0.9 * m[name] + alpha * g
            if (t - 1) % 3 == 0:
                h[name] = 0.99 * h[name] + 0.01 * g**2
        p.w = add(p.w, -LR, {n: m[n] / (h[n].clamp(min=1.0) + 1e-8) for n in m})
        yield


def svrg(p: Plain) -> Iterator[None]:
    for t in range(1, STEPS + 1):
        z = p.z(t)
        c = p.slope(z, t)
        if (t - 1) % 3 == 0:
            anchor, kept = p.w, {name: c * v for name, v in z.items()}
            p.w = add(p.w, -METHODS["mezo_svrg"].options["anchor_lr"], kept)
        else:
            p.w = add(add(p.w, -LR * (c - p.slope(z, t, anchor)), z), -LR, kept)
        yield


def sign(of_element: bool) -> Callable[[Plain], Iterator[None]]:
    def method(p: Plain) -> Iterator[None]:
        for t in range(1, STEPS + 1):
            z = p.z(t)
            c = p.slope(z, t)
            p.w = add(
                p.w, -LR, {n: (c * v).sign() if of_element else c.sign() * v for n, v in z.items()}
            )
            yield

    return method


def conservative(p: Plain) -> Iterator[None]:
    for t in range(1, STEPS + 1):
        z = p.z(t)
        c = p.slope(z, t)
        p.w = min((add(p.w, a * LR * c, z) for a in (0, -1, 1)), key=lambda w: float(p.loss(w, t)))
        yield


def block_wise(marks: list[str], at_once: bool) -> Callable[[Plain], Iterator[None]]:
    def method(p: Plain) -> Iterator[None]:
        for t in range(1, STEPS + 1):
            start, moves = p.w, []
            for mark in marks:
                z = {name: v for name, v in p.z(t).items() if name.startswith(mark)}
                moves.append((p.slope(z, t), z))
                if at_once:
                    p.w = add(p.w, -LR * moves[-1][0], z)
            if not at_once:
                p.w = start
                for c, z in moves:
                    p.w = add(p.w, -LR * c, z)
            yield

    return method


def forward_grad(p: Plain) -> Iterator[None]:
    """c = zᵀ∇L, by back-propagation."""
    for t in range(1, STEPS + 1):
        z = p.z(t)
        leaves = {name: v.clone().requires_grad_() for name, v in p.w.items()}
        with torch.enable_grad():
            grads = torch.autograd.grad(p.loss(leaves, t), list(leaves.values()))
        c = sum((g * z[name]).sum() for name, g in zip(leaves, grads, strict=True))
        p.w = add(p.w, -LR * c, z)
        yield


RESTATED: dict[str, Callable[[Plain], Iterator[None]]] = {
    "mezo": spsa(lambda t: 1),
    "n_spsa": spsa(lambda t: 3),
    "n_spsa_linear": spsa(lambda t: min(3, max(1, (t - 1) * 3 // 6))),
    "adazeta_queries": spsa(lambda t: min(max(math.floor(0.85 * ((t + 1) // 2)), 1), 3)),
    "one_sided": one_sided,
    "one_point": one_point,
    "mezo_momentum": momentum(0.9),
    "momentum_replayed": momentum(0.7),
    "mezo_adam": adam(0.9, 0.999),
    "adam_replayed": adam(0.7, 0.8),
    "sparse_mezo": masked(small()),
    "sparse_mezo_refresh": masked(refreshed),
    "large_weights": masked(small(large=True)),
    "r_mezo": masked(random(lambda t: 0)),
    "pruning": masked(random(lambda t: 1 + (t - 1) // 3)),
    "lezo": masked(layers),
    "subzero": subzero,
    "lozo": lozo(None),
    "lozo_m": lozo(0.9),
    "helene_reconstructed": helene,
    "mezo_svrg": svrg,
    "zo_sign": sign(of_element=False),
    "zo_sign_element": sign(of_element=True),
    "zo_conservative": conservative,
    "zo_block_wise": block_wise(["layers.0.", "layers.1."], at_once=True),
    "zo_block_wise_late": block_wise(["embed.", "layers.0.", "layers.1.", "head."], at_once=False),
    "forward_grad": forward_grad,
}


def test_every_method_is_restated() -> None:
    assert set(RESTATED) == set(METHODS)


@pytest.mark.parametrize(("placement", "name"), pairs(METHODS))
def test_a_method_is_its_equations(placement, name: str) -> None:
    model = Net().double()
    optimizer: ZeroOrder = build(name, model, placement, lr=LR)
    plain = Plain(model, optimizer.table)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    twin = Net().double()
    twin.load_state_dict(model.state_dict())
    plain.model = twin  # the optimizer's own is perturbed in place
    with torch.no_grad():
        for t, _ in enumerate(RESTATED[name](plain), start=1):
            optimizer.step(losses_of(model, t, isinstance(optimizer, ForwardGrad)))
            optimizer.flush()
            for key, p in model.named_parameters():
                # Products of float32 factors are made in float32.
                bar = 2e-5 if name in ("subzero", "lozo", "lozo_m") else 1e-9
                off = float((p - plain.w[key]).abs().max())
                assert off <= bar, f"step {t}: {key} is off by {off:.2g}"
    assert t == STEPS
    moved = [float((p.detach() - start[key]).abs().max()) for key, p in model.named_parameters()]
    assert max(moved) > 1e-3
