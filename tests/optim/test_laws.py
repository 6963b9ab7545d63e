"""Laws every composition obeys, whatever the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.optim.tiny import bits, lm_closure, opt, same_bits
from zolab.optim import (
    Dense,
    Gaussian,
    InPlace,
    LargeWeights,
    MeZO,
    MeZOMomentum,
    Momentum,
    Paired,
    PerLayer,
    Rademacher,
    RandomMask,
    Sgd,
    SmallWeights,
    SparseMeZO,
    TwoSided,
    ZeroOrder,
)

PLACEMENTS = [InPlace, Paired, PerLayer]
MASKS = {
    "dense": Dense,
    "small": lambda: SmallWeights(0.75),
    "large": lambda: LargeWeights(0.75, "masked"),
    "random": lambda: RandomMask(0.75, "frozen"),
    "resampled": lambda: RandomMask(0.75, resample="step"),
}
RULES = {"sgd": Sgd, "momentum": lambda: Momentum(0.9)}


def make(model: nn.Module, placement, **options) -> ZeroOrder:
    options = {"lr": 1e-3, "eps": 1e-3, "seed": 3, **options}
    return ZeroOrder(model.named_parameters(), placement=placement(), model=model, **options)


def run(optimizer: ZeroOrder, closure, steps: int, flush_every: int = 0) -> list:
    records = []
    for step in range(1, steps + 1):
        optimizer.step(closure)
        records.append(optimizer.last)
        if flush_every and step % flush_every == 0:
            optimizer.flush()
    optimizer.flush()
    return records


# -- placements agree ------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["dense", "random"])
def test_placements_agree_on_losses(mask: str) -> None:
    losses = []
    for placement in PLACEMENTS:
        model = opt()
        optimizer = make(model, placement, mask=MASKS[mask](), lr=1e-3)
        losses.append([r.losses for r in run(optimizer, lm_closure(model), 30)])
    reference = torch.tensor(losses[0])
    assert (reference[0] - reference[-1]).abs().max() > 1e-3  # it does move
    for other in losses[1:]:
        assert (torch.tensor(other) - reference).abs().max() <= 1e-5


def test_n_spsa_agrees_between_placements() -> None:
    finals = []
    for placement in PLACEMENTS:
        model = opt()
        optimizer = make(model, placement, estimator=TwoSided(3), rule=Momentum(0.5))
        finals.append([r.losses for r in run(optimizer, lm_closure(model), 10)])
        assert optimizer.last.num_forwards == 6
        assert len(optimizer.last.coefficients) == 3
    for other in finals[1:]:
        assert (torch.tensor(other) - torch.tensor(finals[0])).abs().max() <= 1e-5


# -- replay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("rule", list(RULES))
def test_replay_equals_live(placement, mask: str, rule: str) -> None:
    model, twin = opt(), opt()
    probes = TwoSided(2 if rule == "momentum" else 1)
    options = {"mask": MASKS[mask](), "rule": RULES[rule](), "weight_decay": 0.01}
    optimizer = make(model, placement, estimator=probes, **options)
    saved = {}
    closure = lm_closure(model)
    records = []
    for step in range(1, 13):
        optimizer.step(closure)
        records.append(optimizer.last)
        if step in (5, 9, 12):
            optimizer.flush()
            saved[step] = bits(model)
    options |= {"mask": MASKS[mask](), "rule": RULES[rule]()}
    other = make(twin, placement, estimator=probes, **options)
    for record in records:
        other.replay(record.step, record.lr, record.coefficients)
        if record.step in saved:
            other.flush()
            assert same_bits(bits(twin), saved[record.step])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_flushing_changes_no_bit(placement) -> None:
    finals = []
    for every in (0, 1, 3):
        model = opt()
        run(make(model, placement, mask=SmallWeights(0.5)), lm_closure(model), 9, every)
        finals.append(bits(model))
    assert same_bits(finals[0], finals[1])
    assert same_bits(finals[0], finals[2])


@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_state_dict_round_trip(placement) -> None:
    whole = opt()
    run(make(whole, placement, rule=Momentum(), mask=SmallWeights(0.5)), lm_closure(whole), 8)
    half = opt()
    first = make(half, placement, rule=Momentum(), mask=SmallWeights(0.5))
    run(first, lm_closure(half), 4)
    state = first.state_dict()
    torch.randn(100)  # unrelated randomness must not matter
    second = make(half, placement, rule=Momentum(), mask=SmallWeights(0.5), seed=99)
    second.load_state_dict(state)
    run(second, lm_closure(half), 4)
    assert second.num_steps == 8
    assert same_bits(bits(whole), bits(half))


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("make_mask", [SmallWeights, LargeWeights, RandomMask])
def test_sparsity_zero_is_dense(placement, make_mask) -> None:
    finals = []
    for mask in (Dense(), make_mask(0.0)):
        model = opt()
        run(make(model, placement, mask=mask), lm_closure(model), 6)
        finals.append(bits(model))
    assert same_bits(*finals)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("vectors", ["dense", "frozen", "masked"])
def test_frozen_coordinates_never_move(placement, vectors: str) -> None:
    model = opt()
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[::5] = -0.0  # a sweep that adds 0.0 would turn these into +0.0
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    mask = RandomMask(0.6, vectors)
    optimizer = make(model, placement, mask=mask, lr=1e-2)
    run(optimizer, lm_closure(model), 5)
    moved_any = 0
    for info in optimizer.infos:
        keep = mask.keep(info, info.data, 1)
        keep = torch.full(info.data.shape, keep) if isinstance(keep, bool) else keep
        before = start[info.name].view(torch.int32)
        moved = before != info.data.view(torch.int32)
        assert not (moved & ~keep).any()
        moved_any += int(moved.sum())
    assert moved_any > 0


def test_small_weights_picks_the_smallest_share() -> None:
    model = opt()
    small, large = SmallWeights(0.75), LargeWeights(0.75)
    optimizer = make(model, InPlace, mask=small)
    large.setup(optimizer.infos, 0)
    for info in optimizer.infos:
        if info.is_vector:
            continue
        a, b = small.keep(info, info.data, 1), large.keep(info, info.data, 1)
        magnitude = info.data.abs()
        assert a.float().mean() == pytest.approx(0.25, abs=2 / info.numel)
        assert b.float().mean() == pytest.approx(0.25, abs=2 / info.numel)
        assert magnitude[a].max() < magnitude[~a].min()
        assert magnitude[b].min() > magnitude[~b].max()


def test_mask_follows_the_weights() -> None:
    """Thresholds are fixed, the mask is not: a weight that grows past h leaves it."""
    model = nn.Linear(8, 8, bias=False)
    mask = SmallWeights(0.5)
    optimizer = ZeroOrder(model.named_parameters(), mask=mask, model=model, placement=Paired())
    info = optimizer.infos[0]
    inside = mask.keep(info, info.data, 1)
    with torch.no_grad():
        info.param[inside] = 10.0
    assert not mask.keep(info, info.data, 2).any()


# -- estimates -------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """L(w) = (w - t)ᵀ A (w - t) / 2 with known gradient."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
        root = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.a = root @ root.T
        self.t = torch.randn(size, generator=generator, dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        d = self.w - self.t
        return d @ self.a @ d / 2

    def gradient(self) -> torch.Tensor:
        return (self.a @ (self.w - self.t)).detach()


@pytest.mark.parametrize("direction", [Gaussian(), Gaussian("gauss8"), Rademacher()])
def test_mean_of_probes_approaches_the_gradient(direction) -> None:
    model, n = Quadratic(), 4000
    gradient = model.gradient()
    optimizer = ZeroOrder(
        model.named_parameters(), lr=0.0, direction=direction, estimator=TwoSided(n), eps=1e-4
    )
    optimizer.estimate(lambda copies: [model().item()])
    update = optimizer._pending[1]
    z = torch.stack([direction.z(0, s, 0, 24, gradient.device) for s in update.seeds]).double()
    draws = torch.tensor(update.slopes, dtype=torch.float64)[:, None] / 1e-4 * z
    error = (draws.mean(0) - gradient).abs()
    assert (error <= 4.5 * draws.std(0) / n**0.5).all()
    assert draws.mean(0) @ gradient > 0.9 * gradient.norm() ** 2


@pytest.mark.parametrize("method", [MeZO, MeZOMomentum, SparseMeZO])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_method_descends(method, placement) -> None:
    model = opt()
    lr = 1e-3 if method is MeZOMomentum else 1e-2
    closure = lm_closure(model)
    before = closure(1)[0]
    optimizer = method(model.named_parameters(), lr=lr, placement=placement(), model=model, seed=1)
    run(optimizer, closure, 40)
    assert closure(1)[0] < before - 0.02


def test_mezo_is_its_equation() -> None:
    """θ ← θ - η c z with c from the two losses, recomputed by hand in float64."""
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-3, seed=5)
    w = model.w.detach().clone()
    z = None
    for step in range(1, 6):
        optimizer.step(lambda copies: [model().item()])
        seed = optimizer._probes(step)[0].seed
        z = Gaussian().z(0, seed, 0, 24, w.device).double()
        values = []
        for sign in (1, -1):
            d = w + sign * 1e-3 * z - model.t
            values.append((d @ model.a @ d / 2).item())
        c = (values[0] - values[1]) / 2e-3
        assert optimizer.last.projected_grad == pytest.approx(c, rel=1e-9)
        w = w - 1e-2 * c * z
    optimizer.flush()
    assert torch.allclose(model.w.detach(), w, rtol=0, atol=1e-12)


def test_momentum_is_torch_sgd_on_the_estimate() -> None:
    model = Quadratic()
    optimizer = MeZOMomentum(model.named_parameters(), lr=1e-2, eps=1e-3, beta=0.8, seed=5)
    twin = nn.Parameter(model.w.detach().clone())
    torch_sgd = torch.optim.SGD([twin], lr=1e-2, momentum=0.8)
    for step in range(1, 8):
        optimizer.step(lambda copies: [model().item()])
        z = Gaussian().z(0, optimizer._probes(step)[0].seed, 0, 24, twin.device).double()
        twin.grad = optimizer.last.projected_grad * z
        torch_sgd.step()
    optimizer.flush()
    assert torch.allclose(model.w, twin, rtol=0, atol=1e-11)


# -- 16 bits and odd losses --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_lr_zero_leaves_every_bit(dtype: torch.dtype, placement) -> None:
    model = opt(dtype)
    start = bits(model)
    steps = 200 if placement is Paired else 20
    run(make(model, placement, lr=0.0), lm_closure(model), steps)
    assert same_bits(bits(model), start)


def test_in_place_drifts_as_documented_in_fp32() -> None:
    model = opt()
    start = [p.detach().clone() for p in model.parameters()]
    run(make(model, InPlace, lr=0.0), lm_closure(model), 100)
    drift = [(p - s).square().mean().sqrt() for p, s in zip(model.parameters(), start, strict=True)]
    assert max(drift) < 1e-6  # a random walk of fp32 roundings of weights of size 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_nonfinite_loss_is_skipped(placement) -> None:
    model, calls = opt(), []
    inner = lm_closure(model)

    def closure(copies: int = 1) -> list[float]:
        calls.append(1)
        losses = inner(copies)
        return [math.inf] * len(losses) if len(calls) in (1, 2) else losses

    optimizer = make(model, placement)
    start = bits(model)
    optimizer.step(closure)
    assert optimizer.last.coefficients is None
    assert math.isnan(optimizer.last.projected_grad)
    optimizer.flush()
    if placement is not InPlace:
        assert same_bits(bits(model), start)
    while optimizer.last.coefficients is None:
        optimizer.step(closure)
    optimizer.flush()
    assert not same_bits(bits(model), start)


# -- arguments ---------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    model = opt()
    for key, value in (("lr", -1.0), ("lr", math.nan), ("eps", 0.0), ("weight_decay", -1.0)):
        with pytest.raises(ValueError, match=f"{key} = {value}"):
            make(model, InPlace, **{key: value})
    for bad in (1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"sparsity\.sparsity"):
            SmallWeights(bad)
    with pytest.raises(ValueError, match="num_probes = 0"):
        TwoSided(0)
    with pytest.raises(ValueError, match="needs model="):
        ZeroOrder(model.named_parameters(), placement=Paired())
    with pytest.raises(ValueError, match="nothing to train"):
        MeZO([("w", nn.Parameter(torch.zeros(3), requires_grad=False))])


def test_meta_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="w is on the meta device"):
        MeZO([("w", nn.Parameter(torch.zeros(3, device="meta")))])


def test_eps_below_rounding_warns() -> None:
    model = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        model.weight.normal_()
    with pytest.warns(UserWarning, match="eps = 0.001 is below the rounding unit"):
        MeZO(model.to(torch.bfloat16).named_parameters(), eps=1e-3)
