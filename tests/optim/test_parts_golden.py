"""Estimators, rules and special forms against their equations and against torch."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.optim.tiny import bits, lm_closure, opt, same_bits, tokens
from zolab import compose
from zolab.errors import UserError
from zolab.journal import JournalRow
from zolab.optim import (
    LOZO,
    NSPSA,
    Adam,
    Conservative,
    ForwardGrad,
    ForwardGradient,
    InPlace,
    MeZO,
    MeZOMomentum,
    Momentum,
    OnePoint,
    OneSided,
    Paired,
    PerLayer,
    RandomMask,
    Reference,
    Sgd,
    Sign,
    SmallWeights,
    StepRecord,
    TwoSided,
    ZeroOrder,
    ZOBlockWise,
    ZOConservative,
    ZOSign,
)
from zolab.optim.parameters import ParamInfo
from zolab.optim.reference import ReferenceSgd


def make(model: nn.Module, **options) -> ZeroOrder:
    options = {"lr": 1e-3, "eps": 1e-3, "seed": 3, "model": model, **options}
    return ZeroOrder(model.named_parameters(), **options)


def steps(optimizer: ZeroOrder, closure, num: int) -> list[StepRecord]:
    records = []
    for _ in range(num):
        optimizer.step(closure)
        records.append(optimizer.last)
    optimizer.flush()
    return records


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().view(-1) for p in model.parameters()])


class Linear(nn.Module):
    """A loss that is linear in its weights: every difference is exact but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(40, generator=generator, dtype=torch.float64))
        self.slope = torch.randn(40, generator=generator, dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        return self.w @ self.slope

    def closure(self, copies: int = 1) -> list[float]:
        out = self()
        return out.tolist() if out.dim() else [float(out.detach())] * copies


# -- estimators ------------------------------------------------------------------------------------


def test_one_direction_is_the_base() -> None:
    finals = []
    for method in (MeZO, NSPSA):
        model = opt()
        optimizer = method(model.named_parameters(), 1e-3, num_probes=1, seed=3)
        steps(optimizer, lm_closure(model), 5)
        finals.append(bits(model))
    assert same_bits(*finals)


@pytest.mark.parametrize("estimator", [OneSided(), OneSided(3), OneSided(3, shared=False)])
def test_one_sided_equals_two_sided_on_a_linear_loss(estimator: OneSided) -> None:
    models = Linear(), Linear()
    for model, part in zip(models, (TwoSided(estimator.num_probes), estimator), strict=True):
        optimizer = make(model, lr=1e-2, estimator=part)
        records = steps(optimizer, model.closure, 10)
    assert len(records[0].losses) == estimator.num_probes + (1 if estimator.shared else 3)
    assert (models[0].w - models[1].w).abs().max() < 1e-9


def test_one_point_takes_the_loss_before_from_the_step_before() -> None:
    model = Linear()
    records = steps(make(model, estimator=OnePoint(), lr=1e-4), model.closure, 4)
    assert records[0].coefficients == (0.0,)
    for before, after in itertools.pairwise(records):
        expected = (after.losses[0] - before.losses[0]) / 1e-3
        assert after.coefficients[0] == pytest.approx(expected, rel=1e-12)


def test_schedules_count_as_published() -> None:
    linear = TwoSided(4, "linear", num_steps=10)
    assert [linear.num_at(t) for t in range(1, 12)] == [1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4]
    power = OneSided(5, schedule="power", beta=0.85, alpha=1.0, epoch_steps=2)
    assert [power.num_at(t) for t in range(1, 17, 2)] == [1, 1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0}, "num_probes = 0"),
        ({"schedule": "quadratic"}, "constant, linear, power"),
        ({"schedule": "linear"}, "num_steps = None: schedule linear needs"),
        ({"schedule": "power"}, "epoch_steps = None: schedule power needs"),
        ({"beta": 0.0}, "beta = 0.0"),
    ],
)
def test_bad_schedules_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoSided(**options)


# -- rules -----------------------------------------------------------------------------------------


def explicit(optimizer: ZeroOrder, record: StepRecord) -> list[torch.Tensor]:
    """The gradient estimate of a step, written out."""
    out = []
    for info in optimizer.infos:
        g = torch.zeros(info.numel, dtype=torch.float64)
        for j, c in enumerate(record.coefficients):
            seed = optimizer.seed_of(record.step, j)
            z = optimizer.direction.z(info.pid, seed, 0, info.numel, g.device)
            g += c * z.double() / len(record.coefficients)
        out.append(g.view(info.param.shape))
    return out


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (Sgd, lambda p: torch.optim.SGD(p, lr=1e-3)),
        (Momentum, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)),
        (Adam, lambda p: torch.optim.Adam(p, lr=1e-3)),
        (lambda: Adam(0.5, 0.9, 1e-4), lambda p: torch.optim.Adam(p, 1e-3, (0.5, 0.9), 1e-4)),
    ],
    ids=["sgd", "momentum", "adam", "adam_other"],
)
@pytest.mark.parametrize("num_probes", [1, 3])
def test_rules_are_those_of_torch_on_the_explicit_estimate(rule, theirs, num_probes: int) -> None:
    model, twin = opt(torch.float64), opt(torch.float64)
    optimizer = make(model, rule=rule(), estimator=TwoSided(num_probes), placement=Paired())
    other = theirs(twin.parameters())
    for _ in range(6):
        (record,) = steps(optimizer, lm_closure(model), 1)
        for p, g in zip(twin.parameters(), explicit(optimizer, record), strict=True):
            p.grad = g
        other.step()
    assert (weights(model) - weights(twin)).abs().max() < 1e-12


def test_adam_of_transformers_has_its_eps_outside_the_correction() -> None:
    model = Linear()
    w = model.w.detach().clone()
    optimizer = make(model, rule=Adam(form="transformers"), weight_decay=0.1, placement=PerLayer())
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 5):
        (record,) = steps(optimizer, model.closure, 1)
        (g,) = explicit(optimizer, record)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = 1e-3 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = w - step * m / (v.sqrt() + 1e-8)
        w = w - 1e-3 * 0.1 * w
        assert (model.w - w).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("stored", "replayed"),
    [
        (Momentum(0.5), Momentum(0.5, "replayed")),
        (Momentum(0.5), Momentum(0.5, "replayed", window=40)),
        (Adam(0.5, 0.6), Adam(0.5, 0.6, history="replayed", window=40)),
    ],
)
@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_moments_made_anew_equal_stored_ones(placement, stored, replayed) -> None:
    models = Linear(), Linear()
    for model, rule in zip(models, (stored, replayed), strict=True):
        optimizer = make(model, lr=1e-2, rule=type(rule)(**settings(rule)), placement=placement())
        steps(optimizer, model.closure, 30)
    # The default window drops weights below 1e-3; a longer one drops nothing that counts.
    exact = replayed.window is not None
    distance = (models[0].w - models[1].w).abs().max()
    assert distance < (1e-6 if exact else 0.02)
    assert not any("m." in key for key in optimizer.tensors())


def settings(rule) -> dict:
    names = ("beta", "beta1", "beta2", "history", "window")
    return {name: getattr(rule, name) for name in names if hasattr(rule, name)}


def test_a_window_in_which_moments_still_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window = 10: beta\*\*window = 0.35 is not negligible"):
        Momentum(0.9, "replayed", window=10)
    with pytest.raises(ValueError, match="needs at least 6905"):
        Adam(history="replayed", window=1000)
    assert Momentum(0.9, "replayed").reach == 66
    overrides = ["optimizer=mezo_adam_replayed", "optimizer.rule.window=3"]
    cell = compose.check(compose.compose(overrides))
    model = Linear()
    with pytest.raises(UserError, match="not negligible"):
        compose.build(cell["optimizer"], model.named_parameters())


def test_moments_are_made_anew_only_where_old_noise_can_be() -> None:
    model = opt()
    rule = Momentum(0.5, "replayed")
    with pytest.raises(ValueError, match="not a function of its seed alone"):
        make(model, rule=rule, direction=LOZO(model.named_parameters()).direction)
    with pytest.raises(ValueError, match="mask changes"):
        make(model, rule=rule, mask=SmallWeights(0.5))
    make(model, rule=rule, mask=RandomMask(0.5))


def test_signs_of_the_scalar_and_of_the_elements() -> None:
    for of in ("scalar", "element"):
        model = Linear()
        before = model.w.detach().clone()
        optimizer = make(model, rule=Sign(of), placement=PerLayer())
        (record,) = steps(optimizer, model.closure, 1)
        (g,) = explicit(optimizer, record)
        direction = g.sign() if of == "element" else g / abs(record.coefficients[0])
        assert (before - model.w - 1e-3 * direction).abs().max() < 1e-12


def test_names_of_rules_are_checked() -> None:
    for build, message in (
        (lambda: Sign("loss"), "rule.of = 'loss'"),
        (lambda: Adam(beta2=1.0), "rule.beta2 = 1.0"),
        (lambda: Adam(form="keras"), "rule.form = 'keras'"),
        (lambda: Adam(adam_eps=0.0), "rule.adam_eps = 0.0"),
        (lambda: Momentum(history="kept"), "rule.history = 'kept'"),
        (lambda: InPlace("three"), "placement.sweeps = 'three'"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


# -- noise and walk of published programs ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reference_noise_is_one_torch_stream(dtype: torch.dtype) -> None:
    shapes = {"b": (7, 5), "a": (3,), "c": (2, 9)}
    infos = [
        ParamInfo(name, pid, nn.Parameter(torch.zeros(shape, dtype=dtype)))
        for pid, (name, shape) in enumerate(shapes.items())
    ]
    noise = Reference(["c", "a", "b"])
    noise.setup(infos, 0)
    torch.manual_seed(11)
    for name in ("c", "a", "b"):
        expected = torch.normal(mean=0, std=1, size=shapes[name], dtype=dtype)
        info = next(info for info in infos if info.name == name)
        assert torch.equal(noise.z(info.pid, 11, 0, info.numel, expected.device), expected.view(-1))
    with pytest.raises(ValueError, match="does not list the trained parameters"):
        Reference(["a", "b"]).setup(infos, 0)


def official_steps(model: nn.Module, closure, seeds: list[int], lr: float, eps: float) -> None:
    """MeZO as its Algorithm 1 reads, with one torch stream and the whole walk."""

    def walk(seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            z = torch.normal(0.0, 1.0, p.shape, generator=generator, dtype=p.dtype)
            p.data = p.data + scale * z * eps

    for seed in seeds:
        walk(seed, 1)
        (plus,) = closure(1)
        walk(seed, -2)
        (minus,) = closure(1)
        walk(seed, 1)
        c = (plus - minus) / (2 * eps)
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            z = torch.normal(0.0, 1.0, p.shape, generator=generator, dtype=p.dtype)
            p.data = p.data - lr * (c * z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_official_walk_equals_algorithm_1_bit_for_bit(dtype: torch.dtype) -> None:
    model, twin = opt(dtype), opt(dtype)
    seeds = [5, 6, 7, 8, 9]
    with torch.no_grad():
        official_steps(twin, rounded(lm_closure(twin), dtype), seeds, 1e-3, 1e-3)
    optimizer = make(
        model, rule=ReferenceSgd(), direction=Reference(), placement=InPlace("official"),
        seeds=lambda step, probe: seeds[step - 1],
    )  # fmt: skip
    steps(optimizer, lm_closure(model), 5)
    assert same_bits(bits(model), bits(twin))


def rounded(closure, dtype: torch.dtype):
    """Losses as a journal holds them."""
    digits = 17 if dtype == torch.float64 else 9
    return lambda copies: [float(f"{loss:.{digits}g}") for loss in closure(copies)]


def test_both_walks_agree_but_for_rounding() -> None:
    finals = []
    for sweeps in ("two", "official"):
        model = opt(torch.float64)
        optimizer = make(model, placement=InPlace(sweeps), estimator=TwoSided(2))
        steps(optimizer, lm_closure(model), 6)
        finals.append(weights(model))
    assert (finals[0] - finals[1]).abs().max() < 1e-9


@pytest.mark.parametrize("mask", [None, SmallWeights(0.5)])
def test_official_walk_replays(mask) -> None:
    model, twin = opt(), opt()
    made = [make(m, placement=InPlace("official"), mask=mask) for m in (model, twin)]
    for r in steps(made[0], lm_closure(model), 5):
        made[1].replay(r.step, r.lr, r.coefficients)
    assert same_bits(bits(model), bits(twin))


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


# -- journal ---------------------------------------------------------------------------------------


def test_plain_rows_have_no_key_for_extras() -> None:
    plain = JournalRow.of(StepRecord(1, 1e-3, (1.5, 1.25), (0.5,), 1.375, 2))
    assert plain.to_json() == {"s": 1, "lr": 1e-3, "c": [0.5], "l": [1.5, 1.25]}
    assert JournalRow.from_json(plain.to_json()) == plain
    more = JournalRow(1, 1e-3, (0.5,), (1.5,), 1.5, 1, {"kept": -1})
    assert more.to_json()["x"] == {"kept": -1}
    assert JournalRow.from_json(more.to_json()) == more


def test_signs_of_several_probes_are_averaged() -> None:
    model = Linear()
    optimizer = ZOSign(model.named_parameters(), 1e-3, num_probes=3, placement=PerLayer(),
                       model=model)  # fmt: skip
    before = model.w.detach().clone()
    (record,) = steps(optimizer, model.closure, 1)
    signs = tuple(math.copysign(1.0, c) for c in record.coefficients)
    (g,) = explicit(optimizer, StepRecord(1, 1e-3, (), signs, 0.0, 0))
    assert (before - model.w - 1e-3 * g).abs().max() < 1e-12


def test_momentum_names_its_state() -> None:
    model = opt()
    optimizer = MeZOMomentum(model.named_parameters(), seed=1)
    steps(optimizer, lm_closure(model), 1)
    assert all(key.startswith("rule/") for key in optimizer.tensors())
