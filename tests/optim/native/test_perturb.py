"""Weights perturbed by kernels that were told of them once: beside them, or where they are."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.optim.native.parts import (
    DTYPES,
    KINDS,
    PID,
    SEED,
    Source,
    assert_same_bits,
    needs_compiler,
    specification,
    weights,
)
from tests.optim.small import make, steps
from tests.optim.tiny import bits as bits_of
from tests.optim.tiny import lm_closure, same_bits, small_lm
from zolab.optim import (
    Gaussian,
    Offload,
    Paired,
    PerLayer,
    RandomMask,
    SmallWeights,
    backend,
    bits,
    engine,
    native,
)
from zolab.optim.backend import Limit
from zolab.optim.bits import Places, pack_bits
from zolab.optim.native import jobs
from zolab.optim.native.perturb import Both, Patch
from zolab.optim.placements import modulewise, pieces

pytestmark = [needs_compiler, pytest.mark.usefixtures("_built")]


def few(size: int, share: float) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(size)) < share


def expected(kind: str, part: Tensor, seed: int, mask: Tensor | None, begin: int) -> list[Tensor]:
    with specification():
        return list(backend.pair(part, PID, seed, 1e-3, Source(kind), mask, begin))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
class TestToldOnce:
    def test_exchanged_where_they_are_and_put_back(self, kind, dtype, monkeypatch) -> None:
        monkeypatch.setattr(bits, "FEW", 1.0)  # tiles with many places are right, only slower
        cases = itertools.product((37, 6149, 40_000), (0.0, 0.03, 0.5), (0, 2001))
        for size, share, begin in cases:
            if begin >= size or size * share > 4000:
                continue
            mask, whole = few(size, share), weights(size, dtype)
            part, was = whole[begin:], whole.clone()
            patch, moves = Patch(kind, part, PID, Places.of(mask), begin), mask[begin:]
            patch.rest()  # nothing has begun
            assert_same_bits(whole, was)
            for seed, eps in itertools.product((SEED, 5), (1e-3, -1e-3)):
                both = expected(kind, was[begin:], seed, moves, begin)
                first, then = both if eps > 0 else both[::-1]
                patch.begin(seed, eps)
                # What stays is not copied: a -0 there is still one.
                assert_same_bits(part, torch.where(moves, first, was[begin:]))
                patch.turn()
                assert_same_bits(part, torch.where(moves, then, was[begin:]))
                assert_same_bits(whole[:begin], was[:begin])
                patch.rest()
                assert_same_bits(whole, was)

    def test_beside_them(self, kind, dtype) -> None:
        size, begin = 9001, 2008
        whole, mask = weights(size, dtype), few(size, 0.3)
        part, limit = whole[begin:], Limit(0.01, True)
        forms = {
            None: None,
            mask[begin:]: mask[begin:],
            pack_bits(mask[begin:]): mask[begin:],
            limit: limit.of(part),
        }
        for held, moves in forms.items():
            both = Both(kind, part, PID, held, begin)
            for seed in (SEED, 5):
                for out, want in zip(
                    both.make(seed, 1e-3), expected(kind, part, seed, moves, begin), strict=True
                ):
                    assert_same_bits(out, want)


@pytest.mark.parametrize("offset", [0, 2001])
def test_shared_among_threads(offset: int, monkeypatch) -> None:
    monkeypatch.setattr(jobs, "PARALLEL_FROM", 1)
    size, threads = 70_001, torch.get_num_threads()
    whole, mask = weights(size + offset, torch.float32), few(size + offset, 0.03)
    weight, places, mask = whole[offset:], Places.of(mask), mask[offset:]
    was, both = weight.clone(), []
    torch.set_num_threads(3)
    try:
        patch = Patch("gauss8", weight, PID, places, offset)
        for go in (lambda: patch.begin(SEED, 1e-3), patch.turn, patch.rest):
            go()
            both.append(weight.clone())
    finally:
        torch.set_num_threads(threads)
    for found, want in zip(both, expected("gauss8", was, SEED, mask, offset), strict=False):
        assert_same_bits(found, torch.where(mask, want, was))
    assert_same_bits(both[2], was)


def test_begun_again_or_turned_back() -> None:
    weight, mask = weights(9001, torch.float32), few(9001, 0.03)
    was, patch = weight.clone(), Patch("gauss8", weight, PID, Places.of(mask))
    with pytest.raises(RuntimeError, match="nothing has begun"):
        patch.turn()
    patch.begin(5, 1e-3)
    patch.begin(SEED, 1e-3)  # of what the weights were, not of what the first left
    plus, minus = expected("gauss8", was, SEED, mask, 0)
    for want in (minus, plus):
        patch.turn()
        assert_same_bits(weight, torch.where(mask, want, was))
    patch.rest()
    assert_same_bits(weight, was)
    with pytest.raises(RuntimeError, match="nothing has begun"):
        patch.turn()


def test_refuses_places_of_another_tensor() -> None:
    weight, places = torch.zeros(4096), Places.of(few(4096, 0.01))
    with pytest.raises(ValueError, match="expected places of 4096 elements"):
        Patch("gauss", weight, PID, places, 1)


# -- in a forward ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _as_a_large_model(monkeypatch) -> None:
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)


def trained(model: nn.Module, placement, mask=None, num: int = 3) -> tuple[list, list]:
    options = {"placement": placement, "direction": Gaussian("gauss8")}
    optimizer = make(model, mask=mask or RandomMask(0.97), **options)
    losses = [record.losses for record in steps(optimizer, lm_closure(model), num)]
    return losses, bits_of(model)


@pytest.fixture
def patches(monkeypatch) -> list[Patch]:
    """Those that have begun."""
    out: list[Patch] = []
    begin = Patch.begin

    def noted(self: Patch, seed: int, eps: float) -> None:
        out.append(self)
        begin(self, seed, eps)

    monkeypatch.setattr(Patch, "begin", noted)
    return out


@pytest.mark.parametrize("placement", [Paired, PerLayer])
@pytest.mark.parametrize("at_most", [1 << 22, 100])
def test_training_where_few_move(placement, at_most: int, patches, monkeypatch) -> None:
    for module in (pieces, modulewise):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", at_most)  # 100: all in pieces
    found = trained(small_lm(), placement())
    assert patches
    assert all(patch._values is None for patch in patches)
    with specification():
        wanted = trained(small_lm(), placement())
    assert found[0] == wanted[0]
    assert same_bits(found[1], wanted[1])


def test_streamed_weights_are_copied(patches) -> None:
    """While a block computes it may be on its way elsewhere."""
    found = trained(small_lm(), Offload(), num=2)
    assert not patches
    assert same_bits(found[1], trained(small_lm(), Paired(), num=2)[1])


class Table(nn.Module):
    """A table of positions that returns a part of itself, as some models have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[: x.shape[1]].expand(x.shape[0], -1, -1)


@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_a_part_of_a_weight_may_be_returned(placement) -> None:
    def losses() -> list:
        torch.manual_seed(0)
        table, linear = Table(), nn.Linear(64, 64)

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.linear = table, linear

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x + self.table(x))

        model, x = Model(), torch.randn(4, 8, 64)

        def closure(copies: int = 1) -> list[float]:
            out = model(x.repeat(copies, 1, 1))
            return [float(part.square().mean()) for part in out.chunk(copies)]

        optimizer = make(
            model, placement=placement(), mask=RandomMask(0.97), direction=Gaussian("gauss8")
        )
        return [record.losses for record in steps(optimizer, closure, 2)]

    found = losses()
    with specification():
        assert found == losses()


@pytest.mark.parametrize("broken", ["before", "between"])
def test_an_error_in_a_module_leaves_no_weight_changed(broken: str, patches, monkeypatch) -> None:
    model = small_lm()
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    optimizer = make(model, placement=Paired(), direction=Gaussian("gauss8"), mask=RandomMask(0.97))
    steps(optimizer, lm_closure(model), 1)
    was, calls, forward = bits_of(model), [], type(linear).forward

    def interrupted(self, x: Tensor) -> Tensor:
        calls.append(not same_bits(was, bits_of(model)))
        if len(calls) > (broken == "between"):
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(type(linear), "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lm_closure(model))
    assert not optimizer.placement.modules._told.begun
    assert all(calls)  # the weights of this module were others while it computed
    assert patches[-1]._values is None
    assert same_bits(was, bits_of(model))


@pytest.mark.parametrize(
    "mask", [None, SmallWeights(0.8), RandomMask(0.97)], ids=["all", "small", "few"]
)
def test_told_anew_only_when_something_is_another(mask, monkeypatch) -> None:
    told = []
    for kind in (Both, Patch):

        def counted(self, noise, weight, pid, *args, make=kind.__init__) -> None:
            told.append(pid)
            make(self, noise, weight, pid, *args)

        monkeypatch.setattr(kind, "__init__", counted)
    model = small_lm()
    options = {"placement": Paired(), "direction": Gaussian("gauss8")}
    optimizer = make(model, **options, **({} if mask is None else {"mask": mask}))
    closure = lm_closure(model)
    steps(optimizer, closure, 1)
    first = list(told)
    assert first
    steps(optimizer, closure, 2)
    assert told == first
    (moved,) = (info.param for info in optimizer.infos if info.pid == first[0])
    moved.data = moved.data.clone()
    steps(optimizer, closure, 1)
    assert told[len(first) :] == [first[0]]
    native._forget()
    steps(optimizer, closure, 1)
    assert told[len(first) + 1 :] == first
    with specification():
        steps(optimizer, closure, 1)
    assert len(told) == 2 * len(first) + 1


def test_a_mask_that_is_another_in_each_step_is_not_held() -> None:
    model = small_lm()
    optimizer = make(
        model,
        placement=Paired(),
        direction=Gaussian("gauss8"),
        mask=RandomMask(0.97, resample="step"),
    )
    steps(optimizer, lm_closure(model), 2)
    told = optimizer.placement.modules._told._told
    assert all(mask is True for _, mask, _ in told.values())
