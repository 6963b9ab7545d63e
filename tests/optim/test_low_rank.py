"""SubZero, LOZO and LOZO-M: directions that are products, and momentum on a factor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.optim.small import Matrix
from tests.optim.tiny import bits, lm_closure, opt, same_bits
from zolab.optim import (
    LOZO,
    LOZOM,
    FactorMomentum,
    Gaussian,
    LazyLowRank,
    Subspace,
    ZeroOrder,
)
from zolab.optim.low_rank import LowRank, factor_shape
from zolab.optim.parameters import ParamInfo

CPU = torch.device("cpu")


def prepared(direction: LowRank, *shapes: tuple[int, ...]) -> LowRank:
    """The direction set up for parameters 0, 1, ... of these shapes, run seed 5."""
    infos = [ParamInfo(f"p{i}", i, nn.Parameter(torch.zeros(s)), 0) for i, s in enumerate(shapes)]
    direction.setup(infos, 5)
    return direction


KINDS = [Subspace(4, 3), Subspace(4, 3, scale=False), LazyLowRank(3, 3)]


@pytest.mark.parametrize("direction", KINDS, ids=["subspace", "unscaled", "lazy"])
@pytest.mark.parametrize("shape", [(150, 37), (8, 200), (9, 4, 3)])
def test_materialised_equals_factors_however_it_is_cut(direction: LowRank, shape) -> None:
    prepared(direction, shape).begin(5, [77])
    left, right = direction.factors(0, 77, CPU)
    size = math.prod(shape)
    whole = direction.z(0, 77, 0, size, CPU)
    assert torch.allclose(whole, (left @ right.T).view(-1), rtol=0, atol=1e-5)
    assert torch.linalg.matrix_rank(left.double() @ right.double().T) == direction.rank_of(0)
    for offset, count in ((0, 1), (3, size - 3), (size // 2, size // 3), (size - 1, 1)):
        part = direction.z(0, 77, offset, count, CPU)
        assert torch.equal(part, whole[offset : offset + count])
    rows = torch.tensor([shape[0] - 1, 0, 2])
    width = size // shape[0]
    found = direction.rows(0, 77, rows, width)
    assert torch.allclose(found, whole.view(-1, width)[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [LOZO, LOZOM])
def test_update_equals_the_fused_form(method) -> None:
    """θ + Σ_j -lr c_j left_j rightᵀ by one matrix product, without making z."""
    model = Matrix(dtype=torch.float32)
    optimizer = method(model.named_parameters(), lr=1e-2, rank=3, refresh_every=2, seed=1)
    before = model.w.detach().clone()
    optimizer.step(model.loss)
    optimizer.flush()
    pid = optimizer.table["w"]
    left, right = optimizer.direction.factors(pid, optimizer._probes(1)[0].seed, CPU)
    scale = 1e-2 * optimizer.last.projected_grad / 3 * (0.1 if method is LOZOM else 1.0)
    fused = before.addmm(left, right.T, alpha=-scale)
    assert torch.allclose(model.w, fused, rtol=0, atol=1e-5)


def test_subspace_bases_are_orthonormal_and_last() -> None:
    direction = prepared(Subspace(4, 3), (50, 20), (6,))
    bases = []
    for step in range(1, 8):
        direction.begin(step, [step])
        period = direction.period_at(step)
        u, v = direction.left_basis(0, period, CPU), direction.right(0, period, CPU)
        for basis in (u, v):
            assert torch.allclose(basis.T @ basis, torch.eye(4), atol=1e-6)
        bases.append(u)
    assert torch.equal(bases[0], bases[2])
    assert not torch.allclose(bases[2], bases[3])
    assert torch.equal(bases[3], bases[5])
    # Vectors are plain Gaussian, the same numbers as MeZO's.
    assert torch.equal(direction.z(1, 7, 0, 6, CPU), Gaussian().z(1, 7, 0, 6, CPU))


def test_scaled_subspace_is_as_long_as_a_gaussian() -> None:
    direction = prepared(Subspace(4, 1), (50, 20))
    sizes = []
    for step in range(1, 400):
        direction.begin(step, [step])
        sizes.append(float(direction.z(0, step, 0, 1000, CPU).square().mean()))
    assert sum(sizes) / len(sizes) == pytest.approx(1.0, abs=5 * (2 / 16 / 400) ** 0.5)


@pytest.mark.parametrize("direction", [Subspace(4, 1), LazyLowRank(3, 1)], ids=["subzero", "lozo"])
def test_mean_of_estimates_approaches_the_gradient(direction: LowRank) -> None:
    """Over bases and cores gain * c * z is unbiased: E = G with the scale, and with LOZO's 1/r."""
    prepared(direction, (12, 10))
    g = torch.randn(120, generator=torch.Generator().manual_seed(2))
    draws = []
    for step in range(1, 4001):
        direction.begin(step, [step])
        z = direction.z(0, step, 0, 120, CPU)
        draws.append(direction.gain(0) * (g @ z) * z)
    draws = torch.stack(draws).double()
    error = (draws.mean(0) - g).abs()
    assert (error <= 5.0 * draws.std(0) / 4000**0.5).all()
    assert draws.mean(0) @ g.double() > 0.9 * g.norm() ** 2


def test_elongated_tensors_are_factorised_nearly_square() -> None:
    assert factor_shape((768, 768), 48) == (768, 768)
    assert factor_shape((50272, 512), 48) == (50272, 512)
    assert factor_shape((8, 1024), 8) == (64, 128)  # LoRA
    assert factor_shape((5, 1024), 24) == (64, 80)  # prefix
    assert factor_shape((3, 7), 4) == (3, 7)
    assert factor_shape((16, 3, 3, 3), 2) == (16, 27)


def test_lozo_is_its_equation() -> None:
    """W ← W - η c U Vᵀ / r; the code's form leaves 1/r out; vectors take a plain step."""
    for scaled in (True, False):
        model = Matrix()
        optimizer = LOZO(
            model.named_parameters(), lr=1e-2, rank=3, refresh_every=2, scale_by_rank=scaled, seed=1
        )
        w, b = model.w.detach().clone(), model.b.detach().clone()
        pid = optimizer.table["w"]
        for step in range(1, 6):
            optimizer.step(model.loss)
            seed, c = optimizer._probes(step)[0].seed, optimizer.last.projected_grad
            u = optimizer.direction.noise.rows(torch.arange(20), 3, seed, pid)
            v = optimizer.direction.right(pid, (step - 1) // 2, CPU)
            w -= 1e-2 * c * (u @ v.T).double() / (3 if scaled else 1)
            b -= 1e-2 * c * Gaussian().z(optimizer.table["b"], seed, 0, 5, CPU).double()
        optimizer.flush()
        assert torch.allclose(model.w, w, rtol=0, atol=1e-5)
        assert torch.allclose(model.b, b, rtol=0, atol=1e-9)


def test_lozo_m_is_its_equation() -> None:
    """N ← β N + (1 - β) c U, projected by V_oldᵀ V_new / n on a refresh; W ← W - η N Vᵀ."""
    model = Matrix()
    optimizer = LOZOM(model.named_parameters(), lr=1e-2, rank=3, refresh_every=2, beta=0.8, seed=1)
    w, pid = model.w.detach().clone(), optimizer.table["w"]
    n, old = torch.zeros(20, 3), None
    for step in range(1, 7):
        optimizer.step(model.loss)
        seed, c = optimizer._probes(step)[0].seed, optimizer.last.projected_grad
        u, v = optimizer.direction.factors(pid, seed, CPU)
        if old is not None and not torch.equal(old, v):
            n = n @ old.T @ v / 14
        n, old = 0.8 * n + 0.2 * c / 3 * u, v
        w -= 1e-2 * (n @ v.T).double()
    optimizer.flush()
    assert torch.allclose(model.w, w, rtol=0, atol=1e-5)


def test_lozo_m_without_momentum_is_lozo() -> None:
    finals = []
    for method, options in ((LOZO, {}), (LOZOM, {"beta": 0.0})):
        model = Matrix()
        optimizer = method(model.named_parameters(), lr=1e-2, refresh_every=2, **options)
        for _ in range(5):
            optimizer.step(model.loss)
        optimizer.flush()
        finals.append(model.w.detach().clone())
    assert torch.allclose(*finals, rtol=0, atol=1e-5)


def test_factor_momentum_needs_its_direction() -> None:
    model = Matrix()
    with pytest.raises(ValueError, match="needs direction LazyLowRank"):
        ZeroOrder(model.named_parameters(), rule=FactorMomentum(), direction=Subspace(2))
    for bad in ({"rank": 0}, {"refresh_every": 0}):
        with pytest.raises(ValueError, match=f"direction.{next(iter(bad))} = 0"):
            LazyLowRank(**bad)


def test_kept_directions_are_the_same_bits() -> None:
    """Small models keep z between sweeps; large ones make it again: no bit may differ."""
    finals = []
    for keep in (True, False):
        model = opt()
        optimizer = LOZO(model.named_parameters(), lr=1e-2, refresh_every=2)
        if not keep:
            optimizer.engine.source = optimizer.direction
        for _ in range(5):
            optimizer.step(lm_closure(model))
        optimizer.flush()
        finals.append(bits(model))
    assert same_bits(*finals)
