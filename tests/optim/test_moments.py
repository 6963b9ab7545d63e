"""Updates by moments in plain torch: the formulas, and rules that do without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.optim.native.parts import (
    PID,
    SEED,
    Source,
    assert_same_bits,
    random_mask,
    specification,
    weights,
)
from tests.optim.native.updates import UPDATES, moments, update
from tests.optim.small import make, steps
from tests.optim.tiny import bits, lm_closure, same_bits, small_lm
from zolab.optim import InPlace, Momentum, Paired, SmallWeights, backend
from zolab.optim.backend import Term, apply_term_
from zolab.optim.engine import Engine, Update
from zolab.optim.moments import Divisor, Look, Step
from zolab.optim.parameters import ParamInfo
from zolab.optim.rules import Rule
from zolab.optim.rules.gradient import chunks, descent, gradient, kept


class OwnMomentum(Rule):
    """Heavy ball as somebody may write it who knows nothing of sweeps."""

    stateful = True

    def __init__(self) -> None:
        self.m: dict[str, Tensor] = {}

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        for chunk in chunks(info, mask):
            m = kept(self.m, info)[chunk.start : chunk.start + len(chunk.weight)]
            m.mul_(0.9).add_(gradient(engine, info, update, chunk))
            move = descent(update, info.group, stochastic)
            apply_term_(chunk.weight, m, move, info.pid, chunk.start, chunk.mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", [InPlace, Paired])
@pytest.mark.filterwarnings("ignore:placement in_place with")
def test_a_rule_that_updates_by_itself_is_asked_to(placement, dtype) -> None:
    finals = []
    for rule in (OwnMomentum(), Momentum(0.9)):
        model = small_lm().to(dtype)
        parts = {"placement": placement(), "mask": SmallWeights(0.5)}
        steps(make(model, rule=rule, weight_decay=0.1, **parts), lm_closure(model), 4)
        assert rule.alone == isinstance(rule, OwnMomentum)
        finals.append(bits(model))
    assert same_bits(*finals)


@pytest.mark.parametrize("name", UPDATES)
def test_chunks_change_nothing(name: str, monkeypatch) -> None:
    size, found = 9001, []
    for chunk in (1 << 19, 2048):
        monkeypatch.setattr("zolab.optim.directions.CHUNK", chunk)
        weight = weights(size, torch.bfloat16)
        terms, held = update(name, weight)
        with specification():
            backend.sweep_(weight, PID, terms, Source("gauss8"), random_mask(size))
        found.append([weight, *held])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


def test_a_step_by_hand() -> None:
    """The formulas of `Look`, `Divisor` and `Step` in float64, where a mask is off as well."""
    size, mask = 64, random_mask(64)
    w = weights(size, torch.float64)
    start, (m, v) = w.clone(), moments(size, torch.float64)
    want_m, want_v = m.clone(), v.clone()
    a, b = (Source("gauss").z(PID, seed, 0, size, w.device).double() for seed in (SEED, 5))
    looks = tuple(
        Look(((0.5, SEED), (c, 5)), first=(0.9, 0.3), second=(0.8, 0.7)) for c in (2.0, -1.0)
    )
    for root in (False, True):
        divisor = Divisor(floor=0.2, root=root, times=3.0, plus=0.1)
        backend.sweep_(
            w, PID, [Step(looks, Term(-0.01, 5, 0.9), m, v, divisor)], Source("gauss"), mask
        )
        for c in (2.0, -1.0):
            g = torch.where(mask, 0.5 * a + c * b, 0.0)
            want_m, want_v = 0.9 * want_m + 0.3 * g, 0.8 * want_v + 0.7 * g * g
        d = want_v.clamp(min=0.2)
        d = (d.sqrt() if root else d) * 3.0 + 0.1
        start = torch.where(mask, 0.9 * start - 0.01 * want_m / d, start)
    for found, want in ((w, start), (m, want_m), (v, want_v)):
        assert torch.allclose(found, want, rtol=1e-12, atol=1e-15)
