"""Conservative, forward-gradient and block-wise steps against what they claim."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.optim.small import Linear, explicit, steps, weights
from tests.optim.tiny import bits, lm_closure, opt, same_bits, tokens
from zolab import compose
from zolab.journal import JournalRow
from zolab.optim import (
    LOZO,
    Conservative,
    ForwardGrad,
    ForwardGradient,
    InPlace,
    Momentum,
    OneSided,
    Paired,
    PerLayer,
    RandomMask,
    Sgd,
    TwoSided,
    ZOBlockWise,
    ZOConservative,
)

# -- conservative ----------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", [InPlace, lambda: InPlace("official"), Paired, PerLayer])
@pytest.mark.parametrize("estimator", [TwoSided, OneSided])
def test_conservative_keeps_the_best_and_replays(placement, estimator) -> None:
    model, twin = opt(), opt()
    made = []
    for m in (model, twin):
        options = {"lr": 3e-2, "seed": 3, "placement": placement(), "model": m}
        made.append(Conservative(m.named_parameters(), estimator=estimator(), **options))
    inner = lm_closure(model)

    def closure(copies: int = 1) -> list[float]:
        return [math.nan] * copies if made[0].num_steps == 4 else inner(copies)

    records = steps(made[0], closure, 12)
    assert {r.extra["kept"] for r in records if r.extra} >= {-1, 0}
    assert records[4].coefficients is None
    for record, after in itertools.pairwise(records):
        if record.extra is None or after.extra is None:
            continue
        kept = {0: record.losses[0], -1: record.losses[3], 1: record.losses[4]}
        assert kept[record.extra["kept"]] == min(kept.values())
        assert after.losses[0] == pytest.approx(min(kept.values()), abs=2e-6)
        assert record.num_forwards == 5
    for r in records:
        row = JournalRow.from_json(json.loads(json.dumps(JournalRow.of(r).to_json())))
        made[1].replay(row.step, row.lr, row.coefficients, row.extra, row.losses)
    made[1].flush()
    assert same_bits(bits(model), bits(twin))


@pytest.mark.parametrize("placement", [InPlace, PerLayer])
@pytest.mark.parametrize(("losses", "side"), [
    ([1.0, 2.0, 0.5, 0.2, 3.0], -1),
    ([1.0, 2.0, 0.5, 3.0, 0.2], 1),
    ([1.0, 2.0, 0.5, 3.0, 1.1], 0),
    ([1.0, 2.0, 0.5, math.nan, 0.9], 1),
])  # fmt: skip
def test_conservative_goes_where_the_smallest_loss_was(placement, losses, side: int) -> None:
    model = Linear()
    before = model.w.detach().clone()
    optimizer = ZOConservative(model.named_parameters(), 1e-3, placement=placement(), model=model)
    left = list(losses)
    (record,) = steps(optimizer, lambda copies: [left.pop(0)], 1)
    (g,) = explicit(optimizer, record)
    assert record.coefficients[0] == pytest.approx(750.0)
    assert (model.w - before - side * 1e-3 * g).abs().max() < 1e-12


def test_conservative_refuses_what_has_no_line_of_candidates() -> None:
    model = opt()
    with pytest.raises(ValueError, match="num_probes = 1"):
        ZOConservative(model.named_parameters(), estimator=TwoSided(2))
    with pytest.raises(ValueError, match="weight_decay"):
        ZOConservative([{"params": list(model.named_parameters()), "weight_decay": 0.1}])
    with pytest.raises(ValueError, match="estimate is scaled"):
        ZOConservative(model.named_parameters(), direction=LOZO(model.named_parameters()).direction)


# -- forward gradient ------------------------------------------------------------------------------


class TensorLoss:
    """Next-token loss of a model, as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ids = model, tokens()

    def __call__(self, copies: int = 1) -> list[torch.Tensor]:
        logits = self.model(input_ids=self.ids, use_cache=False).logits
        return [
            F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), self.ids[:, 1:].flatten())
        ]


def test_forward_gradient_is_the_derivative_along_v() -> None:
    model = opt(torch.float64)
    closure = TensorLoss(model)
    optimizer = ForwardGradient(model.named_parameters(), lr=1e-2, seed=3, model=model)
    closure()[0].backward()
    before = weights(model)
    grads = [p.grad.view(-1) for p in model.parameters()]
    (record,) = steps(optimizer, closure, 1)
    v = torch.cat([
        optimizer.direction.z(i.pid, optimizer.seed_of(1, 0), 0, i.numel, i.data.device).double()
        for i in optimizer.infos
    ])  # fmt: skip
    assert record.coefficients[0] == pytest.approx(float(torch.cat(grads) @ v), rel=1e-10)
    assert record.num_forwards == len(record.losses) == 1
    expected = before - 1e-2 * record.coefficients[0] * v
    assert (weights(model) - expected).abs().max() < 1e-12
    assert all(type(p) is nn.Parameter for p in model.parameters())


@pytest.mark.parametrize("mask", [None, RandomMask(0.5, resample="step")])
@pytest.mark.parametrize("rule", [Sgd, Momentum])
def test_forward_gradient_replays_and_descends(rule, mask) -> None:
    model, twin = opt(), opt()
    before = lm_closure(model)(1)[0]
    made = [
        ForwardGrad(m.named_parameters(), 2e-3, 0.01, rule=rule(), mask=mask, seed=3, model=m)
        for m in (model, twin)
    ]
    inner = TensorLoss(model)
    records = []
    for step in range(20):
        made[0].step(lambda copies, t=step: [x * (math.nan if t == 3 else 1) for x in inner()])
        records.append(made[0].last)
    assert records[3].coefficients is None
    assert lm_closure(model)(1)[0] < before
    for r in records:
        made[1].replay(r.step, r.lr, r.coefficients, r.extra, r.losses)
    assert same_bits(bits(model), bits(twin))


def test_forward_gradient_names_what_it_needs() -> None:
    model = opt()
    with pytest.raises(ValueError, match="needs model="):
        ForwardGrad(model.named_parameters())
    optimizer = ForwardGrad(model.named_parameters(), model=model)
    with pytest.raises(TypeError, match="tensors with their tangents, not float"):
        optimizer.step(lm_closure(model))
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_forward_gradient_yaml_is_python() -> None:
    cell = compose.check(compose.compose(["optimizer=forward_grad"]))
    model = opt()
    built = compose.build(cell["optimizer"], model.named_parameters(), model=model)
    made = ForwardGradient(model.named_parameters(), lr=2e-4, model=model)
    for part in ("estimator", "direction", "rule", "mask", "placement"):
        assert type(getattr(built, part)) is type(getattr(made, part))
    assert built.param_groups[0]["lr"] == made.param_groups[0]["lr"]


# -- block-wise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinate", [True, False])
def test_block_wise_is_one_small_step_per_block(coordinate: bool) -> None:
    """Each block by hand: perturb it alone, then move it at once or at the end."""
    model, twin = opt(torch.float64), opt(torch.float64)
    optimizer = ZOBlockWise(
        model.named_parameters(), 1e-3, coordinate=coordinate, seed=3, model=model
    )
    (record,) = steps(optimizer, lm_closure(model), 1)
    assert len(optimizer.blocks) == 5  # two embeddings, final norm, two layers
    assert record.num_forwards == 10
    named, closure, moves = dict(twin.named_parameters()), lm_closure(twin), []
    for block, c in zip(optimizer.blocks, record.coefficients, strict=True):
        zs = {
            i.name: block.direction.z(i.pid, optimizer.seed_of(1, 0), 0, i.numel, i.data.device)
            .double()
            .view(i.param.shape)
            for i in block.infos
        }
        losses = []
        with torch.no_grad():
            for scale in (1.0, -2.0):
                for name, z in zs.items():
                    named[name].add_(z, alpha=scale * 1e-3)
                losses += closure(1)
            for name, z in zs.items():
                named[name].add_(z, alpha=1e-3)
        assert c == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=1e-2, abs=1e-3)
        moves.append((zs, c))
        if coordinate:
            move(named, moves.pop())
    for each in moves:
        move(named, each)
    assert (weights(model) - weights(twin)).abs().max() < 1e-9


def move(named: dict[str, nn.Parameter], block: tuple[dict[str, torch.Tensor], float]) -> None:
    zs, c = block
    with torch.no_grad():
        for name, z in zs.items():
            named[name].add_(z, alpha=-1e-3 * c)


def test_block_wise_frozen_outside_never_moves() -> None:
    model = opt()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = ZOBlockWise(model.named_parameters(), 1e-2, outside="frozen", model=model)
    assert len(optimizer.blocks) == 2
    steps(optimizer, lm_closure(model), 3)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (".layers." in name)


def test_block_wise_groups_keep_their_rates_and_replay() -> None:
    model, twin = opt(), opt()
    made = []
    for m in (model, twin):
        named = list(m.named_parameters())
        made.append(
            ZOBlockWise(
                [
                    {"params": [x for x in named if "bias" in x[0]], "lr": 0.0},
                    {"params": [x for x in named if "bias" not in x[0]]},
                ],
                1e-3,
                rule=Momentum(0.5),
                model=m,
            )
        )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for r in steps(made[0], lm_closure(model), 4):
        made[1].replay(r.step, r.lr, r.coefficients, r.extra, r.losses)
    made[1].flush()
    assert same_bits(bits(model), bits(twin))
    for name, p in model.named_parameters():
        assert (p - before[name]).abs().max() < 1e-6 or "bias" not in name
    with pytest.raises(ValueError, match="no mask"):
        ZOBlockWise(model.named_parameters(), mask=RandomMask(0.5))
