"""MeZO-SVRG against its equations, and what its control terms cancel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.optim.tiny import lm_closure, opt
from zolab.optim import (
    Gaussian,
    LazyLowRank,
    MeZO,
    MeZOSVRG,
    RandomMask,
    SmallWeights,
)

CPU = torch.device("cpu")


class Regression(nn.Module):
    """Least squares over rows; a batch is a slice of them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        self.y = torch.randn(12, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def value(self, w: Tensor, rows: slice) -> float:
        return float((self.x[rows] @ w - self.y[rows]).square().mean())

    def batch(self, rows: slice):
        return lambda copies=1: [self.value(self.w.detach(), rows)] * copies


BATCHES = [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_svrg_is_its_equations() -> None:
    model = Regression()
    optimizer = MeZOSVRG(
        model.named_parameters(), lr=1e-2, anchor_lr=5e-2, anchor_every=3, eps=1e-4, seed=4
    )
    optimizer.full_batch = lambda: [model.batch(rows) for rows in BATCHES]
    w = model.w.detach().clone()
    anchor = g = None

    def estimate(at: Tensor, z: Tensor, rows: slice) -> Tensor:
        plus, minus = model.value(at + 1e-4 * z, rows), model.value(at - 1e-4 * z, rows)
        return (plus - minus) / 2e-4 * z

    for step in range(1, 9):
        rows = BATCHES[step % 3]
        optimizer.step(model.batch(rows))
        z = Gaussian().z(0, optimizer._probes(step)[0].seed, 0, 6, CPU).double()
        if step % 3 == 1:
            anchor = w.clone()
            g = estimate(anchor, z, slice(0, 12))
            w = w - 5e-2 * g
            assert optimizer.last.num_forwards == 6
        else:
            w = w - 1e-2 * (estimate(w, z, rows) - estimate(anchor, z, rows) + g)
            assert optimizer.last.num_forwards == 4
    optimizer.flush()
    assert torch.allclose(model.w, w, rtol=0, atol=1e-9)


def test_svrg_control_terms_cancel_at_the_anchor() -> None:
    """With lr 0 the weights stay at the anchor, so what is left of a step is g̃ alone."""
    model = Regression()
    optimizer = MeZOSVRG(model.named_parameters(), lr=0.0, anchor_every=2, seed=4)
    optimizer.step(model.batch(BATCHES[0]))
    full = optimizer.last.coefficients[0]
    optimizer.step(model.batch(BATCHES[1]))
    assert optimizer.last.coefficients == (pytest.approx(0.0, abs=1e-8), pytest.approx(full))


def test_svrg_without_a_valid_anchor_steps_as_mezo() -> None:
    model, twin = opt(), opt()
    optimizer = MeZOSVRG(model.named_parameters(), lr=1e-3, anchor_every=3, seed=4)
    mezo = MeZO(twin.named_parameters(), lr=1e-3, seed=4)
    optimizer.step(lambda copies=1: [math.nan] * copies)
    mezo.step(lambda copies=1: [math.nan] * copies)
    for _ in range(2):
        optimizer.step(lm_closure(model))
        mezo.step(lm_closure(twin))
        assert len(optimizer.last.coefficients) == 1
    optimizer.flush()
    mezo.flush()
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_svrg_refuses_what_cannot_be_compared() -> None:
    model = opt()
    with pytest.raises(ValueError, match="the mask may not change"):
        MeZOSVRG(model.named_parameters(), mask=SmallWeights(0.5))
    with pytest.raises(ValueError, match="kept as its seed"):
        MeZOSVRG(model.named_parameters(), direction=LazyLowRank())
    MeZOSVRG(model.named_parameters(), mask=RandomMask(0.5))
    with pytest.raises(ValueError, match="anchor_every = 0"):
        MeZOSVRG(model.named_parameters(), anchor_every=0)
