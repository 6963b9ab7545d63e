"""Estimators, rules, reference noise and journal rows against their equations and torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from tests.optim.small import Linear, explicit, make, steps, weights
from tests.optim.tiny import bits, lm_closure, opt, same_bits
from zolab.journal import JournalRow
from zolab.optim import (
    LOZO,
    NSPSA,
    Adam,
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
    ZOSign,
)
from zolab.optim.parameters import ParamInfo
from zolab.optim.reference import ReferenceSgd

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
