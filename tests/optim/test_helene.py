"""HELENE: its formulas under every switch, and what its curvature can tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.optim.small import Matrix
from zolab.optim import (
    Gaussian,
    Helene,
    HeleneReconstructed,
    MeZO,
    TwoSided,
    ZeroOrder,
)

CPU = torch.device("cpu")


def helene_by_hand(rule: Helene, gradients: list[Tensor], lr: float) -> Tensor:
    """Sum of all moves, from the formulas of the reference, section 3.1."""
    m = h = moved = torch.zeros_like(gradients[0])
    floor = None
    for t, g in enumerate(gradients, start=1):
        alpha = rule.beta1 + (1 - rule.beta1) * math.exp(-t / rule.anneal_steps)
        alpha = alpha if rule.annealing else 1.0
        m = (rule.beta1 if rule.momentum else 0.0) * m + alpha * g
        if (t - 1) % rule.hessian_every == 0:
            h = rule.beta2 * h + (1 - rule.beta2) * rule.batch_factor * g * g
            if rule.clip == "quantile" and floor is None and t > rule.warmup_steps:
                floor = h.sort().values[math.ceil(rule.clip_value * len(h)) - 1]
        if rule.clip == "constant":
            floor = torch.tensor(rule.clip_value)
        below = floor if rule.layer_clip else torch.tensor(0.0)
        divide = rule.hessian and below is not None
        d = rule.gamma * torch.maximum(h, below) + rule.damping if divide else 1.0
        moved = moved - lr * m / d
    return moved


NAMES = ("annealing", "momentum", "hessian", "layer_clip")
SWITCHES = [(a, m, h, c) for a in (0, 1) for m in (0, 1) for h in (0, 1) for c in (0, 1)]


@pytest.mark.parametrize("clip", [("constant", 0.3), ("quantile", 0.6)])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "".join(map(str, s)))
def test_helene_is_its_formulas(switches, clip) -> None:
    model = Matrix()
    constants = {
        **dict(zip(NAMES, map(bool, switches), strict=True)),
        **{"beta1": 0.8, "beta2": 0.9, "anneal_steps": 5.0, "hessian_every": 2, "gamma": 0.7},
        **{"batch_factor": 4.0, "clip": clip[0], "clip_value": clip[1], "warmup_steps": 3},
    }
    rule = Helene(**constants)
    optimizer = ZeroOrder(model.named_parameters(), lr=1e-4, rule=rule, estimator=TwoSided(2))
    w = model.w.detach().clone().view(-1)
    gradients = []
    for step in range(1, 9):
        optimizer.step(model.loss)
        z = [
            Gaussian().z(optimizer.table["w"], p.seed, 0, 280, CPU) for p in optimizer._probes(step)
        ]
        c = optimizer.last.coefficients
        gradients.append(sum(a * b.double() for a, b in zip(c, z, strict=True)) / 2)
    optimizer.flush()
    want = helene_by_hand(rule, gradients, 1e-4)
    # Without a bound a first step may divide by next to nothing.
    scale = max(1.0, float(want.abs().max()))
    assert torch.allclose(model.w.view(-1) - w, want, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_helene_with_all_switches_off_is_mezo(gamma: float) -> None:
    finals = []
    off = dict.fromkeys(NAMES, False)
    for make in (
        lambda p: MeZO(p, lr=1e-2),
        lambda p: HeleneReconstructed(p, lr=1e-2, rule={"gamma": gamma}, **off),
        # The same with curvature and clip on but one bound so high that it decides: MeZO / γλ.
        lambda p: HeleneReconstructed(
            p,
            lr=1e-2 * gamma * 1e9,
            rule={"gamma": gamma, "clip_value": 1e9},
            **(off | {"hessian": True, "layer_clip": True}),
        ),
    ):
        model = Matrix()
        optimizer = make(model.named_parameters())
        for _ in range(6):
            optimizer.step(model.loss)
        optimizer.flush()
        finals.append(model.w.detach().clone())
    for other in finals[1:]:
        assert torch.allclose(finals[0], other, rtol=0, atol=1e-9)


def test_helene_keeps_no_state_for_what_is_off() -> None:
    for on, kinds in (
        ({"momentum": True, "hessian": False}, {"m"}),
        ({"momentum": False, "hessian": True}, {"h", "floor"}),
        ({"momentum": False, "hessian": False}, set()),
    ):
        model = Matrix()
        optimizer = ZeroOrder(model.named_parameters(), rule=Helene(**on))
        optimizer.step(model.loss)
        optimizer.flush()
        assert {key.rpartition("/")[2] for key in optimizer.rule.state()} == kinds


class Slope(nn.Module):
    """L = <g, w>, g² spread over three decades: what a curvature built from (c z)² could see."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.g = torch.logspace(-1.65, 1.65, size, dtype=torch.float64).sqrt()

    def loss(self, copies: int = 1) -> list[float]:
        return [float(self.g @ self.w.detach())] * copies


def spread_of_h(size: int, probes: int, looks: int) -> tuple[float, float]:
    """Ratio of the 95th to the 5th percentile of h, and the correlation of h with g²."""
    model = Slope(size)
    rule = Helene(hessian_every=1, beta2=1.0 - 1.0 / looks, annealing=False, momentum=False)
    optimizer = ZeroOrder(
        model.named_parameters(), lr=0.0, rule=rule, estimator=TwoSided(probes), eps=1e-3
    )
    for _ in range(2 * looks):
        optimizer.step(model.loss)
    optimizer.flush()
    low, high = rule.spread()["w"]
    h = rule.state()["w/h"]
    return high / low, float(torch.corrcoef(torch.stack((h, model.g**2)))[0, 1])


def test_one_probe_curvature_tells_coordinates_hardly_apart() -> None:
    """E[(c z_i)²] = |g|² + 2 g_i²: with one probe h is one number, with many it becomes g²."""
    g2 = Slope(300).g ** 2
    true = float(g2.kthvalue(285).values / g2.kthvalue(15).values)
    assert true > 500
    expected = g2.sum() + 2 * g2
    bound = float(expected.kthvalue(285).values / expected.kthvalue(15).values)
    assert bound < 1.1
    ratio, _ = spread_of_h(300, 1, 500)
    assert ratio < 2.0  # what is left is sampling noise: sqrt(8 / 1000) to each side
    # ĝ² of n probes has mean g_i² + (|g|² + g_i²) / n
    many, correlation = spread_of_h(300, 400, 10)
    assert many > 5
    assert correlation > 0.9


def test_helene_bad_constants_are_named() -> None:
    for key, bad in (("beta1", 1.0), ("gamma", 0.0), ("clip", "none"), ("hessian_every", 0)):
        with pytest.raises(ValueError, match=f"rule.{key} = {bad}"):
            Helene(**{key: bad})
    with pytest.raises(ValueError, match=r"rule.clip_value = 1.5: expected a quantile"):
        Helene(clip="quantile", clip_value=1.5)
