"""Laws that every named method obeys; a method is one line of `METHODS`.

An exemption names the law and says why it cannot hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.tiny import bits, lm_closure, opt, same_bits
from zolab import compose
from zolab.optim import (
    LOZO,
    LOZOM,
    NSPSA,
    AdaZetaQueries,
    Dense,
    HeleneReconstructed,
    InPlace,
    LargeWeightsMeZO,
    LayerMask,
    LeZO,
    MeZO,
    MeZOAdam,
    MeZOAdamReplayed,
    MeZOMomentum,
    MeZOMomentumReplayed,
    MeZOSVRG,
    OnePointMeZO,
    OneSidedMeZO,
    Paired,
    RandomMask,
    RMeZO,
    SparseMeZO,
    SubZero,
    ZeroOrder,
    ZOBlockWise,
    ZOConservative,
    ZOSign,
)


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        make: constructor; takes parameters and the keywords of `ZeroOrder`.
        forwards: forwards of a step (from 1), the table of the reference.
        yaml: overrides that compose it.
        lr: rate at which it descends the tiny language model in 40 steps.
        quadratic_lr: rate at which it descends the quadratic in 300 steps.
        options: what makes a short test meet every branch (refreshes within a few steps, ...).
        exempt: law -> reason.
    """

    make: Callable[..., ZeroOrder]
    forwards: Callable[[int], int]
    yaml: tuple[str, ...]
    lr: float = 1e-2
    quadratic_lr: float = 4e-3
    options: dict[str, Any] = field(default_factory=dict)
    exempt: dict[str, str] = field(default_factory=dict)


def two(step: int) -> int:
    return 2


_SOON = {"rank": 3, "refresh_every": 3}
METHODS: dict[str, Method] = {
    "mezo": Method(MeZO, two, ("optimizer=mezo",)),
    "n_spsa": Method(
        MeZO,
        lambda step: 6,
        ("optimizer=mezo", "optimizer.estimator.num_probes=3"),
        options={"num_probes": 3},
    ),
    "mezo_momentum": Method(
        MeZOMomentum, two, ("optimizer=mezo_momentum",), lr=1e-3, quadratic_lr=4e-4
    ),
    "sparse_mezo": Method(SparseMeZO, two, ("optimizer=mezo", "sparsity=small_weights")),
    "sparse_mezo_refresh": Method(
        SparseMeZO,
        two,
        (
            *("optimizer=mezo", "sparsity=small_weights", "sparsity.threshold=global"),
            "sparsity.refresh_every=3",
        ),
        options={"threshold": "global", "refresh_every": 3},
    ),
    "large_weights": Method(LargeWeightsMeZO, two, ("optimizer=mezo", "sparsity=large_weights")),
    "r_mezo": Method(RMeZO, two, ("optimizer=mezo", "sparsity=random")),
    "pruning": Method(
        RMeZO,
        two,
        (
            *("optimizer=mezo", "sparsity=random", "sparsity.resample=step"),
            "sparsity.resample_every=3",
        ),
        options={"resample": "step", "resample_every": 3},
    ),
    "lezo": Method(
        LeZO,
        two,
        ("optimizer=mezo", "sparsity=layers", "sparsity.sparsity=0.5"),
        options={"sparsity": 0.5},
    ),
    "subzero": Method(
        SubZero,
        two,
        (
            *("optimizer=subzero", "optimizer.direction.rank=3"),
            "optimizer.direction.refresh_every=3",
        ),
        options=_SOON,
    ),
    "lozo": Method(
        LOZO,
        two,
        ("optimizer=lozo", "optimizer.direction.rank=3", "optimizer.direction.refresh_every=3"),
        lr=5e-3,
        options=_SOON,
    ),
    "lozo_m": Method(
        LOZOM,
        two,
        ("optimizer=lozo_m", "optimizer.direction.rank=3", "optimizer.direction.refresh_every=3"),
        lr=2e-2,
        options=_SOON,
    ),
    "helene_reconstructed": Method(
        HeleneReconstructed,
        two,
        ("optimizer=helene_reconstructed", "optimizer.rule.hessian_every=3"),
        lr=1e-3,
        quadratic_lr=3e-3,
        options={"rule": {"hessian_every": 3}},
    ),
    "mezo_svrg": Method(
        MeZOSVRG,
        lambda step: 2 if step % 3 == 1 else 4,
        ("optimizer=mezo_svrg", "optimizer.anchor_every=3"),
        lr=3e-3,
        quadratic_lr=1e-3,
        options={"anchor_every": 3, "anchor_lr": 1e-3},
        exempt={
            "layers": "g̃ and both control terms must see the same coordinates: no changing mask"
        },
    ),
    "n_spsa_linear": Method(
        NSPSA,
        lambda step: 2 * min(3, max(1, 3 * (step - 1) // 6)),
        (
            *("optimizer=mezo_nspsa_linear", "optimizer.estimator.num_probes=3"),
            "train.steps=6",
        ),
        options={"num_probes": 3, "num_steps": 6},
    ),
    "adazeta_queries": Method(
        AdaZetaQueries,
        lambda step: 2 * min(3, max(1, int(0.85 * ((step - 1) // 2 + 1)))),
        (
            *("optimizer=adazeta_queries", "optimizer.estimator.num_probes=3"),
            "optimizer.estimator.epoch_steps=2",
        ),
        options={"num_probes": 3, "epoch_steps": 2},
    ),
    "one_sided": Method(
        OneSidedMeZO,
        lambda step: 4,
        ("optimizer=mezo_one_sided", "optimizer.estimator.num_probes=3"),
        options={"num_probes": 3},
    ),
    "one_point": Method(
        OnePointMeZO,
        lambda step: 1,
        ("optimizer=mezo_one_point",),
        lr=1e-5,
        quadratic_lr=1e-6,
        exempt={
            "quadratic": "its variance grows as 1/eps²: no descent in so few steps",
            "language_model": "its variance grows as 1/eps²: no descent in so few steps",
        },
    ),
    "momentum_replayed": Method(
        MeZOMomentumReplayed,
        two,
        ("optimizer=mezo_momentum_replayed", "optimizer.rule.beta=0.7"),
        lr=3e-3,
        quadratic_lr=1e-3,
        options={"beta": 0.7},
        exempt={"layers": "the masks of old steps are not kept"},
    ),
    "mezo_adam": Method(MeZOAdam, two, ("optimizer=mezo_adam",), lr=1e-3, quadratic_lr=1e-2),
    "adam_replayed": Method(
        MeZOAdamReplayed,
        two,
        ("optimizer=mezo_adam_replayed", "optimizer.rule.beta2=0.8", "optimizer.rule.beta1=0.7"),
        lr=1e-3,
        quadratic_lr=1e-2,
        options={"beta1": 0.7, "beta2": 0.8},
        exempt={"layers": "the masks of old steps are not kept"},
    ),
    "zo_sign": Method(ZOSign, two, ("optimizer=zo_sign",), lr=1e-3, quadratic_lr=1e-2),
    "zo_sign_element": Method(
        ZOSign,
        two,
        ("optimizer=zo_sign", "optimizer.rule.of=element"),
        lr=1e-3,
        quadratic_lr=1e-2,
        options={"of": "element"},
    ),
    "zo_conservative": Method(
        ZOConservative,
        lambda step: 5,
        ("optimizer=zo_conservative",),
        exempt={"replay": "refuses weight decay, which the law sets: see test_parts_golden"},
    ),
    "zo_block_wise": Method(
        ZOBlockWise,
        lambda step: 4,
        ("optimizer=zo_block_wise", "optimizer.outside=frozen"),
        options={"outside": "frozen"},
        exempt={"layers": "blocks are its mask", "own": "blocks are its mask"},
    ),
    "zo_block_wise_late": Method(
        ZOBlockWise,
        lambda step: 10,
        ("optimizer=zo_block_wise", "optimizer.coordinate=false"),
        options={"coordinate": False},
        exempt={
            "layers": "blocks are its mask",
            "own": "blocks are its mask",
            "quadratic": "its two tensors belong to one layer: nothing to add to zo_block_wise",
        },
    ),
}
PLACEMENTS = [InPlace, Paired]


def cases(law: str) -> list[str]:
    """Methods under a law."""
    return [name for name, method in METHODS.items() if law not in method.exempt]


def build(name: str, model: nn.Module, placement=InPlace, **options: Any) -> ZeroOrder:
    method = METHODS[name]
    options = {"lr": method.lr, "seed": 3, **copy.deepcopy(method.options), **options}
    return method.make(model.named_parameters(), placement=placement(), model=model, **options)


def steps(optimizer: ZeroOrder, closure, num: int) -> list:
    records = []
    for _ in range(num):
        optimizer.step(closure)
        records.append(optimizer.last)
    return records


def again(optimizer: ZeroOrder, records: list) -> None:
    for r in records:
        optimizer.replay(r.step, r.lr, r.coefficients, r.extra, r.losses)


def with_mask(name: str, model: nn.Module, mask: Dense, **options: Any) -> ZeroOrder:
    """The method with another mask, whether or not its constructor offers one."""
    try:
        return build(name, model, mask=mask, **options)
    except TypeError:
        made = build(name, model)
        placement = options.pop("placement", InPlace)()
        parts = {"estimator": made.estimator, "direction": made.direction, "rule": made.rule}
        options = {"lr": METHODS[name].lr, **options}
        return ZeroOrder(
            model.named_parameters(), mask=mask, placement=placement, model=model, seed=3,
            **parts, **options,
        )  # fmt: skip


# -- a run is its journal --------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", cases("replay"))
def test_replay_equals_live_and_goes_on_alike(placement, name: str) -> None:
    """Rows of 8 steps, one of them skipped, give the same bits, and so do the next 4 steps."""
    model, twin = opt(), opt()
    calls = []
    inner = lm_closure(model)

    def closure(copies: int = 1) -> list[float]:
        calls.append(copies)
        return [math.inf] * copies if optimizer.num_steps == 3 else inner(copies)

    optimizer = build(name, model, placement, weight_decay=0.01)
    records = steps(optimizer, closure, 8)
    optimizer.flush()
    assert records[3].coefficients is None
    assert all(r.coefficients is not None for r in (*records[:3], *records[4:]))
    other = build(name, twin, placement, weight_decay=0.01)
    again(other, records)
    other.flush()
    assert same_bits(bits(model), bits(twin))
    live, rebuilt = steps(optimizer, inner, 4), steps(other, lm_closure(twin), 4)
    assert [r.losses for r in live] == [r.losses for r in rebuilt]
    optimizer.flush()
    other.flush()
    assert same_bits(bits(model), bits(twin))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", cases("interrupted"))
def test_interrupted_equals_uninterrupted(placement, name: str) -> None:
    whole, half = opt(), opt()
    optimizer = build(name, whole, placement)
    steps(optimizer, lm_closure(whole), 8)
    optimizer.flush()
    first = build(name, half, placement)
    steps(first, lm_closure(half), 5)
    state = first.state_dict()
    torch.randn(100)  # unrelated randomness must not matter
    second = build(name, half, placement, seed=99)
    second.load_state_dict(copy.deepcopy(state))
    steps(second, lm_closure(half), 3)
    second.flush()
    assert second.num_steps == 8
    assert same_bits(bits(whole), bits(half))


@pytest.mark.parametrize("name", cases("nonfinite"))
def test_a_nonfinite_loss_is_counted_and_changes_no_bit(name: str) -> None:
    model = opt()
    optimizer = build(name, model, Paired)
    steps(optimizer, lm_closure(model), 2)
    before = bits(model)
    (record,) = steps(optimizer, lambda copies=1: [math.nan] * copies, 1)
    assert record.coefficients is None
    assert record.num_forwards >= 1
    assert same_bits(bits(model), before)
    steps(optimizer, lm_closure(model), 1)
    assert not same_bits(bits(model), before)


@pytest.mark.parametrize("name", cases("lr_zero"))
def test_lr_zero_leaves_every_bit(name: str) -> None:
    model = opt()
    before = bits(model)
    steps(build(name, model, Paired, lr=0.0), lm_closure(model), 7)
    assert same_bits(bits(model), before)


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", [*cases("own"), *(f"{n}+layers" for n in cases("layers"))])
def test_what_no_mask_chose_never_moves(placement, name: str) -> None:
    """With the method's own mask, and with frozen layers."""
    name, _, layers = name.partition("+")
    model = opt()
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1)[::5] = -0.0  # a sweep that adds 0.0 would turn these into +0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if layers:
        # Nothing outside the layers moves, and one of the two layers may stay put for 3 steps.
        optimizer = with_mask(name, model, LayerMask(0.5, []), placement=placement)
    else:
        optimizer = build(name, model, placement)
    seen = {info.name: torch.zeros(info.param.shape, dtype=torch.bool) for info in optimizer.infos}
    inner = optimizer.mask.keep

    def keep(info, weight, step):
        found = inner(info, weight, step)
        seen[info.name] |= found
        return found

    optimizer.mask.keep = keep
    steps(optimizer, lm_closure(model), 4)
    optimizer.flush()
    moved_any = 0
    for info in optimizer.infos:
        moved = before[info.name].view(torch.int32) != info.data.view(torch.int32)
        assert not (moved & ~seen[info.name]).any(), info.name
        moved_any += int(moved.sum())
    assert moved_any > 0


@pytest.mark.parametrize("name", [n for n in METHODS if "sparsity" in str(METHODS[n].yaml)])
def test_sparsity_zero_is_mezo(name: str) -> None:
    finals = []
    for options in ({"sparsity": 0.0}, None):
        model = opt()
        optimizer = build(name, model, **options) if options else build("mezo", model, lr=1e-2)
        steps(optimizer, lm_closure(model), 5)
        optimizer.flush()
        finals.append(bits(model))
    assert same_bits(*finals)


# -- cost and effect -------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", cases("forwards"))
def test_forwards_are_those_of_the_table(placement, name: str) -> None:
    model, rows = opt(), []
    inner = lm_closure(model)

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

    def loss(self) -> float:
        flat = torch.cat([p.detach().view(-1) for p in self.parameters()])
        return float((flat - self.target).double().square().sum() / 2)


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


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", cases("language_model"))
def test_descends_a_tiny_language_model(placement, name: str) -> None:
    model = opt()
    closure = lm_closure(model)
    before = closure(1)[0]
    optimizer = build(name, model, placement, seed=1)
    steps(optimizer, closure, 40)
    optimizer.flush()
    assert closure(1)[0] < before - 0.02


# -- YAML = Python ---------------------------------------------------------------------------------


def describe(optimizer: ZeroOrder) -> dict[str, Any]:
    """Class and settings of the optimizer and its parts."""
    parts = ["estimator", "direction", "mask", "rule"]
    out: dict[str, Any] = {"class": type(optimizer).__name__}
    for name in parts:
        part = getattr(optimizer, name)
        settings = {
            k: v
            for k, v in vars(part).items()
            if not k.startswith("_") and isinstance(v, bool | int | float | str | list | None)
        }
        settings.pop("run_seed", None)
        out[name] = (type(part).__name__, settings)
    defaults = {"anchor_every"}
    out |= {k: v for k, v in vars(optimizer).items() if k in defaults}
    return out


@pytest.mark.parametrize("name", list(METHODS))
def test_yaml_is_python(name: str) -> None:
    overrides = compose.prepare_overrides(METHODS[name].yaml)
    cell = compose.check(compose.compose(overrides))
    model = opt()
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
        with_mask(name, opt(), RandomMask(0.5))
    with_mask(name, opt(), RandomMask(0.0))
    with_mask(name, opt(), LayerMask(0.5))
