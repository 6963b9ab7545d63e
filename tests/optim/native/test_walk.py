"""One walk over many parameters gives the bits of a sweep over each, whatever happens to weights,
masks and kernels between two walks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from tests.optim.tiny import lm_closure, opt, same_bits, small_lm
from zolab import optim
from zolab.optim import Gaussian, InPlace, Rademacher, ZeroOrder, engine, native, walks
from zolab.optim.backend import Term
from zolab.optim.directions import Kept
from zolab.optim.native import jobs
from zolab.optim.native.walk import Sweeps
from zolab.optim.placements.base import Placement

pytestmark = pytest.mark.skipif(not native.available(), reason="needs a C compiler")
SIZES = {3: 1, 4: 17, 9: 4099, 2: jobs.PARALLEL_FROM + 5}


@pytest.mark.parametrize("kind", ["gauss", "gauss8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_a_walk_is_a_sweep_over_each(kind, dtype, threads, kept) -> None:
    terms = [Term(1e-3, 5), Term(-7e-5, 11, 0.999, True), Term(0.0, 12, 0.5)]
    weights = [torch.linspace(-1, 1, n).to(dtype) for n in SIZES.values()]
    expected = [w.clone() for w in weights]
    held = Kept(Gaussian(kind), dict(SIZES), seeds=3)
    source = {t.seed: held.whole(t.seed, torch.device("cpu")) for t in terms} if kept else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for weight, pid in zip(expected, SIZES, strict=True):
            native.sweep(kind, weight, pid, terms)
        Sweeps(kind, weights, list(SIZES), len(terms)).run(terms, source)
    finally:
        torch.set_num_threads(before)
    for found, want in zip(weights, expected, strict=True):
        assert same_bits([found], [want])


def test_what_c_may_not_walk_over_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        Sweeps("gauss", [torch.zeros(4), torch.zeros(4, 4)[:, 0]], [0, 1], 1)
    with pytest.raises(ValueError, match="kept"):
        Sweeps("gauss", [torch.zeros(4)], [0], 1).run([Term(1.0, 1)], {1: {0: torch.zeros(3)}})


@pytest.mark.parametrize("direction", [Gaussian, Rademacher])
def test_groups_with_rates_of_their_own_walk_as_one_by_one(direction) -> None:
    finals = []
    for together in (True, False):
        model = opt()
        named = list(model.named_parameters())
        groups = [
            {"params": named[:3], "lr": 1e-3, "eps": 1e-2},
            {"params": named[3:], "weight_decay": 0.1},
        ]
        placement = InPlace()
        optimizer = ZeroOrder(
            groups, lr=1e-4, eps=1e-3, placement=placement, direction=direction(), model=model
        )
        assert [len(walk.infos) for walk in placement._walks] == [3, len(named) - 3]
        if not together:
            placement._walks = None
        closure = lm_closure(model)
        for _ in range(4):
            optimizer.step(closure)
        optimizer.flush()
        finals.append([p.detach().clone() for p in model.parameters()])
    assert same_bits(*finals)


MASKS: dict[str, Callable[[], optim.Dense]] = {
    "dense": optim.Dense,
    "small": lambda: optim.SmallWeights(0.8),
    "small_masked_vectors": lambda: optim.SmallWeights(0.5, vectors="masked", refresh_every=2),
    "large_global": lambda: optim.LargeWeights(0.5, vectors="frozen", threshold="global"),
    "random_places": lambda: optim.RandomMask(0.97),
    "random_bits": lambda: optim.RandomMask(0.5),
    "random_anew": lambda: optim.RandomMask(0.5, resample="step"),
    "layers": lambda: optim.LayerMask(0.5),
}
PLACEMENTS = {"in_place": optim.InPlace, "paired": optim.Paired}


def _optimizer(mask: str, placement: Placement, plainly: bool, **options) -> ZeroOrder:
    model = small_lm()
    optimizer = ZeroOrder(
        model.named_parameters(), lr=1e-2, eps=1e-2, weight_decay=0.1, model=model, seed=3,
        placement=placement, mask=MASKS[mask](), direction=optim.Gaussian("gauss8"), **options
    )  # fmt: skip
    optimizer.model = model
    if plainly:
        placement._walks = None
    return optimizer


def _steps(optimizer: ZeroOrder, count: int = 3) -> None:
    closure = lm_closure(optimizer.model)
    for _ in range(count):
        optimizer.step(closure)


def _weights(optimizer: ZeroOrder) -> list[torch.Tensor]:
    optimizer.flush()
    return [p.detach().clone() for p in optimizer.model.parameters()]


def _flush(optimizer: ZeroOrder, plainly: bool) -> None:
    optimizer.flush()


def _move_weights(optimizer: ZeroOrder, plainly: bool) -> None:
    for p in optimizer.model.parameters():
        p.data = p.data.clone()


def _resume(optimizer: ZeroOrder, plainly: bool) -> None:
    """Weights and thresholds of the first steps are put back, and another seed."""
    _steps(optimizer, 2)
    optimizer.flush()
    state = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(optimizer.model.state_dict())
    _steps(optimizer, 2)
    state["zero_order"]["seed"] = 77
    state["zero_order"]["mask"] = {k: 1.5 * v for k, v in state["zero_order"]["mask"].items()}
    optimizer.load_state_dict(state)
    optimizer.model.load_state_dict(weights)


def _other_placement(optimizer: ZeroOrder, plainly: bool) -> None:
    kind = optim.Paired if isinstance(optimizer.placement, optim.InPlace) else optim.InPlace
    optimizer.use_placement(kind())
    if plainly:
        optimizer.placement._walks = None
    _steps(optimizer)


def _new_rate(optimizer: ZeroOrder, plainly: bool) -> None:
    optimizer.param_groups[0].update(lr=3e-2, weight_decay=0.0, eps=2e-2)


def _held_masks(optimizer: ZeroOrder, plainly: bool) -> None:
    """Masks are held in other memory than before."""
    held = optimizer.engine._held
    for pid, mask in held.items():
        held[pid] = mask.clone() if isinstance(mask, torch.Tensor) else mask


BETWEEN = (_flush, _move_weights, _resume, _other_placement, _new_rate, _held_masks)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("large", [False, True])
def test_told_once_is_told_one_by_one(mask, placement, large, monkeypatch) -> None:
    if large:  # masks as bits and places, as for models that are
        monkeypatch.setattr(engine, "KEEP_BYTES", 0)
    finals = []
    for plainly in (False, True):
        optimizer = _optimizer(mask, PLACEMENTS[placement](), plainly)
        for change in BETWEEN:
            _steps(optimizer)
            change(optimizer, plainly)
        _steps(optimizer)
        finals.append(_weights(optimizer))
    assert same_bits(*finals)


@pytest.mark.parametrize("mask", ["dense", "small", "random_places"])
@pytest.mark.parametrize("placement", ["in_place", "paired"])
def test_nothing_is_told_twice_and_what_moved_is(mask, placement, monkeypatch) -> None:
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)
    made = []

    class Counted(walks.Sweeps):
        def __init__(self, *args) -> None:
            made.append(len(args[1]))
            super().__init__(*args)

    monkeypatch.setattr(walks, "Sweeps", Counted)
    optimizer = _optimizer(mask, PLACEMENTS[placement](), plainly=False)
    _steps(optimizer)
    told = len(made)
    assert told > 0
    _steps(optimizer)
    assert len(made) == told
    kept = next(optimizer.model.parameters())
    kept.data = kept.data.clone()
    _steps(optimizer)
    assert len(made) > told


def test_kernels_turned_off_between_two_steps_are_not_used(monkeypatch) -> None:
    finals = []
    for plainly in (False, True):
        optimizer = _optimizer("small", optim.InPlace(), plainly)
        _steps(optimizer)
        monkeypatch.setenv("ZOLAB_NATIVE", "0")
        monkeypatch.setattr(walks.Sweeps, "run", lambda *args: pytest.fail("kernels were used"))
        _steps(optimizer)
        monkeypatch.undo()
        _steps(optimizer)
        finals.append(_weights(optimizer))
    assert same_bits(*finals)
