"""Whole updates in one call, and pairs by two sweeps: never another bit than one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.native.parts import assert_same_bits, needs_compiler
from tests.optim.tiny import lm_closure, opt
from zolab.optim import (
    Gaussian,
    LayerMask,
    LazyLowRank,
    Momentum,
    Paired,
    Subspace,
    ZeroOrder,
    native,
)
from zolab.optim import engine as engine_module
from zolab.optim.native.norm import Norm
from zolab.optim.native.thin import Thin
from zolab.optim.placements import at_once, paired


def make(model: nn.Module, direction=None, **options) -> ZeroOrder:
    options = {"lr": 1e-2, "eps": 1e-2, "seed": 3, "placement": Paired(), **options}
    params = options.pop("params", None) or model.named_parameters()
    return ZeroOrder(params, model=model, direction=direction or LazyLowRank(2, 3), **options)


def one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(paired, "applied_at_once", lambda *_: False)


def answers(monkeypatch) -> list[bool]:
    """Whether updates went at once."""
    out, whether = [], at_once.applied_at_once

    def asked(*args) -> bool:
        out.append(whether(*args))
        return out[-1]

    monkeypatch.setattr(paired, "applied_at_once", asked)
    return out


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [LazyLowRank, Subspace])
def test_an_update_at_once_is_that_of_each(kind, dtype, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    finals, applied = [], answers(monkeypatch)
    for alone in (False, True):
        if alone:
            assert applied == [True] * 4
            one_by_one(monkeypatch)
        model = opt(dtype)
        named = list(model.named_parameters())
        groups = [
            {"params": named[::2], "lr": 1e-2, "weight_decay": 0.1},
            {"params": named[1::2], "lr": 3e-2},
        ]
        optimizer = make(model, kind(2, 3), params=groups)
        closure = lm_closure(model)
        for _ in range(4):
            optimizer.step(closure)
        finals.append([p.detach().clone() for p in model.parameters()])
    for found, expected in zip(*finals, strict=True):
        assert_same_bits(found, expected)


@needs_compiler
@pytest.mark.parametrize("case", ["mask", "rule", "small", "no kernels", "other noise"])
def test_what_cannot_go_at_once_goes_one_by_one(case: str, monkeypatch) -> None:
    if case != "small":
        monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    if case == "no kernels":
        monkeypatch.setenv("ZOLAB_NATIVE", "0")
    options = {"mask": {"mask": LayerMask(0.5)}, "rule": {"rule": Momentum()}}.get(case, {})
    model = opt()
    optimizer = make(model, Gaussian() if case == "other noise" else None, **options)
    found = answers(monkeypatch)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(lm_closure(model))
    assert found == [False]
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@needs_compiler
@pytest.mark.parametrize("kind", [LazyLowRank, Subspace])
def test_a_pair_by_sweeps_is_the_pair(kind, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    optimizer = make(opt(), kind(2, 3))
    optimizer.direction.begin(1, [9])
    matrices = [info for info in optimizer.infos if not info.is_vector]
    swept = []
    sweep = optimizer.direction.sweep
    monkeypatch.setattr(
        optimizer.direction, "sweep", lambda *args: swept.append(args[1]) or sweep(*args)
    )
    for info in matrices:
        mask = optimizer.engine.choice_of(info, info.data)
        found = at_once.pair(optimizer.engine, info, info.data, 9, 1e-2, mask)
        expected = optimizer.engine.pair_rows(info, info.data, 9, 1e-2, mask, 0)
        assert not torch.equal(found[0], found[1])
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)
    assert swept == [info.pid for info in matrices for _ in range(2)]


@pytest.mark.skipif(
    not (native.available() and native._library().thin_rank), reason="no kernel here"
)
def test_plans_kept_over_evaluations_are_those_made_anew() -> None:
    drawn = torch.Generator().manual_seed(0)
    x, sides = torch.randn(6, 9, generator=drawn), []
    for _ in range(2):
        left, right = (torch.randn(2, n, generator=drawn).T for n in (7, 9))
        sides.append((left, right, (0.5, -0.5), (torch.randn(7, generator=drawn), 0.3)))
    kept = Thin(*sides[0])
    assert kept.fits(*sides[1][:3])
    kept.aim(*sides[1])
    found, expected = torch.zeros(6, 7), torch.zeros(6, 7)
    assert kept.add_(found, x)
    assert Thin(*sides[1]).add_(expected, x)
    assert_same_bits(found, expected)
    left, right, scales, _ = sides[0]
    kept.aim(left, right, scales)
    assert kept.add_(found.zero_(), x)
    assert Thin(left, right, scales).add_(expected.zero_(), x)
    assert_same_bits(found, expected)
    assert not kept.fits(left, right, (1.0,))
    assert not kept.fits(left[:, :1], right[:, :1], scales)
    with pytest.raises(ValueError, match="scales"):
        kept.aim(left, right, (1.0,))
    with pytest.raises(ValueError, match="left factor"):
        kept.aim(left[:5], right, scales)
    weights = torch.randn(4, 9, generator=drawn)
    norm = Norm((weights[0], weights[1]), (weights[2], weights[3]), 1e-5)
    norm.aim((weights[3], weights[2]), (weights[1], weights[0]))
    anew = Norm((weights[3], weights[2]), (weights[1], weights[0]), 1e-5)
    assert_same_bits(norm(x), anew(x))
    norm.rest()
    with pytest.raises(ValueError, match="weight"):
        norm.aim((weights[0, :5], weights[1]), (weights[2], weights[3]))


def test_an_evaluation_holds_nothing_afterwards() -> None:
    model = opt()
    optimizer = make(model)
    optimizer.step(lm_closure(model))
    ready = optimizer.placement.modules._ready
    assert not (ready.pairs)
    assert not (ready.linear)
    assert not (ready.norms)
    for plan in ready._plans[0]:
        assert plan._clean is None
        assert getattr(plan, "thin", None) is None or plan.thin._kept is None
    assert all(getattr(plan, "norm", None) is None or plan.norm._kept is None
               for plan in ready._plans[1])  # fmt: skip
