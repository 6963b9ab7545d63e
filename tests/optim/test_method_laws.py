"""Laws that every named method obeys (`tests/optim/methods.py`), with every placement."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.optim.methods import (
    MASKED,
    METHODS,
    PLACEMENTS,
    again,
    build,
    cases,
    closure_of,
    describe,
    pairs,
    steps,
)
from tests.optim.small import Net, losses_of
from tests.optim.tiny import bits, same_bits, small_lm
from zolab import compose
from zolab.optim import InPlace, LayerMask, Paired, RandomMask

# -- a run is its journal --------------------------------------------------------------------------


@pytest.mark.parametrize(("placement", "name"), pairs(cases("replay")))
def test_replay_equals_live_and_goes_on_alike(placement, name: str) -> None:
    """Rows of 8 steps, one of them skipped, give the same bits, and so do the next 4 steps."""
    model, twin = small_lm(), small_lm()
    calls = []
    inner = closure_of(name, model)

    def closure(copies: int = 1) -> list[float]:
        calls.append(copies)
        return [torch.tensor(math.inf)] * copies if optimizer.num_steps == 3 else inner(copies)

    decay = {} if "decay" in METHODS[name].exempt else {"weight_decay": 0.01}
    optimizer = build(name, model, placement, **decay)
    records = steps(optimizer, closure, 8)
    optimizer.flush()
    assert records[3].coefficients is None
    assert all(r.coefficients is not None for r in (*records[:3], *records[4:]))
    other = build(name, twin, placement, **decay)
    again(other, records)
    other.flush()
    assert same_bits(bits(model), bits(twin))
    live, rebuilt = steps(optimizer, inner, 4), steps(other, closure_of(name, twin), 4)
    assert [r.losses for r in live] == [r.losses for r in rebuilt]
    optimizer.flush()
    other.flush()
    assert same_bits(bits(model), bits(twin))


@pytest.mark.parametrize(("placement", "name"), pairs(cases("interrupted")))
def test_interrupted_equals_uninterrupted(placement, name: str) -> None:
    whole, half = small_lm(), small_lm()
    optimizer = build(name, whole, placement)
    steps(optimizer, closure_of(name, whole), 8)
    optimizer.flush()
    first = build(name, half, placement)
    steps(first, closure_of(name, half), 5)
    state = first.state_dict()
    torch.randn(100)  # unrelated randomness must not matter
    second = build(name, half, placement, seed=99)
    second.load_state_dict(copy.deepcopy(state))
    steps(second, closure_of(name, half), 3)
    second.flush()
    assert second.num_steps == 8
    assert same_bits(bits(whole), bits(half))


@pytest.mark.parametrize("name", cases("nonfinite"))
def test_a_nonfinite_loss_is_counted_and_changes_no_bit(name: str) -> None:
    model = small_lm()
    optimizer = build(name, model, Paired)
    steps(optimizer, closure_of(name, model), 2)
    before = bits(model)
    (record,) = steps(optimizer, lambda copies=1: [torch.tensor(math.nan)] * copies, 1)
    assert record.coefficients is None
    assert record.num_forwards >= 1
    assert same_bits(bits(model), before)
    steps(optimizer, closure_of(name, model), 1)
    assert not same_bits(bits(model), before)


@pytest.mark.parametrize(("placement", "name"), pairs(cases("lr_zero")))
def test_lr_zero_leaves_every_bit_or_the_rounding_of_the_walk(placement, name: str) -> None:
    model = small_lm()
    before, start = bits(model), [p.detach().clone() for p in model.parameters()]
    optimizer = build(name, model, placement, lr=0.0)
    num_sweeps = sum(r.num_forwards + 1 for r in steps(optimizer, closure_of(name, model), 7))
    optimizer.flush()
    if not isinstance(optimizer.placement, InPlace):
        assert same_bits(bits(model), before)
        return
    for p, old in zip(model.parameters(), start, strict=True):
        # Each sweep rounds once: to half a unit of a weight that may be 4 sigma eps larger.
        unit = torch.finfo(p.dtype).eps * (old.abs().max() + 1e-2)
        assert (p - old).abs().max() <= 0.5 * unit * num_sweeps


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "name"),
    pairs([*cases("own"), *(f"{n}+layers" for n in cases("layers") if n not in MASKED)]),
)
def test_what_no_mask_chose_never_moves(placement, name: str) -> None:
    """With the method's own mask, and with frozen layers."""
    name, _, layers = name.partition("+")
    model = small_lm()
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[::5] = -0.0  # a sweep that adds 0.0 would turn these into +0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if layers:
        # Nothing outside the layers moves, and one of the two layers may stay put for 3 steps.
        optimizer = build(name, model, placement, mask=LayerMask(0.5, []))
    else:
        optimizer = build(name, model, placement)
    seen = {info.name: torch.zeros(info.param.shape, dtype=torch.bool) for info in optimizer.infos}
    closure = closure_of(name, model)
    for step in range(1, 5):
        clean = [info.data.clone() for info in optimizer.infos]
        steps(optimizer, closure, 1)
        optimizer.flush()
        # Limits were taken, if they were due, from the same clean weights.
        for info, weight in zip(optimizer.infos, clean, strict=True):
            seen[info.name] |= optimizer.mask.keep(info, weight, step)
    moved_any = 0
    for info in optimizer.infos:
        moved = before[info.name].view(torch.int32) != info.data.view(torch.int32)
        assert not (moved & ~seen[info.name]).any(), info.name
        moved_any += int(moved.sum())
    assert moved_any > 0


@pytest.mark.parametrize("name", ["n_spsa", "n_spsa_linear", "adazeta_queries"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_direction_is_mezo(placement, name: str) -> None:
    finals = []
    for method in (name, "mezo"):
        model = small_lm()
        optimizer = build(method, model, placement, num_probes=1, lr=1e-2)
        steps(optimizer, closure_of(method, model), 5)
        optimizer.flush()
        finals.append(bits(model))
    assert same_bits(*finals)


@pytest.mark.parametrize("name", MASKED)
def test_sparsity_zero_is_mezo(name: str) -> None:
    finals = []
    for options in ({"sparsity": 0.0}, None):
        model = small_lm()
        optimizer = build(name, model, **options) if options else build("mezo", model, lr=1e-2)
        steps(optimizer, closure_of(name, model), 5)
        optimizer.flush()
        finals.append(bits(model))
    assert same_bits(*finals)


# -- the estimate ----------------------------------------------------------------------------------

#: So that draws are independent, and a step of the anchor is an estimate like any other.
_OFTEN = {
    **{name: {"refresh_every": 1} for name in ("subzero", "lozo", "lozo_m")},
    "mezo_svrg": {"anchor_every": 1, "anchor_lr": 1e-6},
    "pruning": {"resample_every": 1},
}
DRAWS = 160


@pytest.mark.parametrize(("placement", "name"), pairs(cases("gradient")))
def test_mean_of_steps_approaches_the_gradient(placement, name: str) -> None:
    """Where a method moves, its first step is on average -lr times the gradient."""
    model = Net().double()
    closure = losses_of(model, 1, name == "forward_grad")
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses_of(model, 1, tensors=True)()[0].backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer = build(name, model, placement, lr=1e-6, **_OFTEN.get(name, {}))
    draws, wanted = [], []
    for step in range(1, DRAWS + 1):
        optimizer.step(closure)
        optimizer.flush()
        moved, want = [], []
        for info in optimizer.infos:
            keep = optimizer.mask.keep(info, start[info.name], step)
            if name == "zo_block_wise":  # its embeddings and head are frozen
                keep = info.name.startswith("layers.")
            moved.append(((start[info.name] - info.data) / 1e-6).view(-1))
            # A first step of LOZO-M has the weight 1 - beta; vectors have no momentum.
            part = 0.1 if name == "lozo_m" and not info.is_vector else 1.0
            want.append((part * gradient[info.name] * keep).view(-1))
        draws.append(torch.cat(moved))
        wanted.append(torch.cat(want))
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n])
        optimizer.rule.load_state({})
    first = 1 if name == "one_point" else 0  # it has nothing to compare its first loss with
    draws, expected = torch.stack(draws[first:]), torch.stack(wanted).mean(0)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5.0 * error + 1e-7).all()
    along = draws @ expected / expected.square().sum()
    error = float(along.std() / len(draws) ** 0.5)
    assert error < 0.25
    assert abs(float(along.mean()) - 1.0) <= 4.5 * error


# -- cost and effect -------------------------------------------------------------------------------


@pytest.mark.parametrize(("placement", "name"), pairs(cases("forwards")))
def test_forwards_are_those_of_the_table(placement, name: str) -> None:
    model, rows = small_lm(), []
    inner = closure_of(name, model)

    def closure(copies: int = 1) -> list[float]:
        rows.append(copies)
        return inner(copies)

    optimizer = build(name, model, placement)
    for step in range(1, 8):
        rows.clear()
        optimizer.step(closure)
        assert optimizer.last.num_forwards == METHODS[name].forwards(step) == sum(rows)


class Quadratic(nn.Module):
    """Half the squared distance of a matrix and a vector from their targets."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = nn.ModuleList([nn.Linear(10, 12)])
        self.target = torch.randn(132, generator=generator)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))

    def loss(self) -> torch.Tensor:
        flat = torch.cat([p.view(-1) for p in self.parameters()])
        return (flat - self.target).double().square().sum() / 2


@pytest.mark.parametrize("name", cases("quadratic"))
def test_descends_a_quadratic(name: str) -> None:
    model = Quadratic()
    optimizer = build(name, model, lr=METHODS[name].quadratic_lr)
    masked = optimizer.mask.sparsity if not optimizer.mask.structured else 0.0
    before = model.loss()
    steps(optimizer, lambda copies=1: [model.loss()] * copies, 300)
    optimizer.flush()
    # A frozen share of the distance cannot be closed.
    assert model.loss() < (masked + (1 - masked) * 0.8) * before


@pytest.mark.parametrize(("placement", "name"), pairs(cases("language_model")))
def test_descends_a_tiny_language_model(placement, name: str) -> None:
    model = small_lm()
    closure = closure_of(name, model)
    before = closure(1)[0]
    optimizer = build(name, model, placement, seed=1)
    steps(optimizer, closure, 40)
    optimizer.flush()
    assert closure(1)[0] < before - 0.02


# -- YAML = Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_yaml_is_python(name: str) -> None:
    overrides = compose.prepare_overrides(METHODS[name].yaml)
    cell = compose.check(compose.compose(overrides))
    model = small_lm()
    mask = compose.build(cell["sparsity"])
    built = compose.build(
        cell["optimizer"], model.named_parameters(), mask=mask, seed=3, model=model
    )
    assert describe(built) == describe(build(name, model))
    assert built.param_groups[0]["eps"] == build(name, model).param_groups[0]["eps"]


# -- parts that do not go together -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["subzero", "lozo", "lozo_m"])
def test_low_rank_refuses_a_mask_of_coordinates(name: str) -> None:
    with pytest.raises(ValueError, match="no longer low-rank"):
        build(name, small_lm(), mask=RandomMask(0.5))
    build(name, small_lm(), mask=RandomMask(0.0))
    build(name, small_lm(), mask=LayerMask(0.5))
