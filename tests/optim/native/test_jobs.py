"""Work shared among threads, sweeps that wait for one another, masks as bits, normalisation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.optim.native.parts import (
    DTYPES,
    KINDS,
    PID,
    TERMS,
    Source,
    assert_same_bits,
    random_mask,
    specification,
    weights,
)
from tests.optim.tiny import lm_closure, opt, same_bits
from zolab.optim import LazyLowRank, Paired, Subspace, ZeroOrder, backend, native
from zolab.optim.backend import Term
from zolab.optim.bits import pack_bits
from zolab.optim.low_rank import LowRank
from zolab.optim.native import jobs, probe
from zolab.optim.native.norm import Norm, takes_norm
from zolab.optim.native.products import by_columns, product

pytestmark = pytest.mark.skipif(not native.available(), reason="needs a C compiler")


@pytest.fixture(params=["team", "pool"])
def _threads(request, monkeypatch):
    """Three threads, torch's own or plain ones, for whatever size."""
    on = native._library()
    if request.param == "team" and not on._team:
        pytest.skip("torch has no OpenMP of GNU's here")
    monkeypatch.setattr(on, "_team", request.param == "team")
    monkeypatch.setattr(jobs, "PARALLEL_FROM", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_many_lots_are_done_whole_whoever_does_them() -> None:
    sizes = [1, 5000, 2, 70_001, 2048, 4096, 0, 33]
    found = [weights(n, torch.float32) for n in sizes]
    wanted = [w.clone() for w in found]
    with jobs.together():
        for pid, weight in enumerate(found):
            native.sweep("gauss8", weight, pid, TERMS["walk"])
        assert torch.equal(found[1], wanted[1]), "not before the end"
    for pid, weight in enumerate(wanted):
        backend.sweep_(weight, pid, TERMS["walk"], Source("gauss8"))
        assert_same_bits(found[pid], weight)


@pytest.mark.parametrize("threads", range(1, 6))
def test_shares_of_threads_leave_nothing_out_and_do_nothing_twice(threads: int) -> None:
    on = native._library()
    ones, zeros = [torch.ones(n) for n in (7, 5000, 12_345)], []
    lots, keep = [], []
    for unit, out in zip((1, 2048, 16), ones, strict=True):
        zeros.append(torch.zeros(len(out), 3))
        # Copies ones: what a share writes is counted and taken away before the next one.
        keep.append(probe.Turn(zeros[-1].data_ptr(), out.data_ptr(), len(out), 1))
        lots.append(on.lot("zo_turn", keep[-1], len(out), unit=unit, weight=3))
    told = (probe.Lot * 3)(*lots)
    done = torch.zeros(3)
    for thread in range(threads):
        before = [z.view(-1)[: len(o)].sum() for z, o in zip(zeros, ones, strict=True)]
        on.lib.zo_share(told, 3, thread, threads)
        after = [z.view(-1)[: len(o)].sum() for z, o in zip(zeros, ones, strict=True)]
        done += torch.tensor([float(b - a) for a, b in zip(before, after, strict=True)])
        for z in zeros:
            z.zero_()
    assert done.tolist() == [7.0, 5000.0, 12_345.0]


def test_sweeps_of_the_same_weights_wait_for_each_other() -> None:
    found, first, then = weights(9001, torch.float32), TERMS["move"], [Term(0.1, 9, 0.5)]
    wanted = found.clone()
    with jobs.together():
        native.sweep("gauss", found, PID, first)
        native.sweep("gauss", found, PID, then)
        jobs.settle()
        with specification():
            backend.sweep_(wanted, PID, [*first, *then], Source("gauss"))
        assert_same_bits(found, wanted)
        native.sweep("gauss", found, PID, first)
        backend.sweep_(found, PID, then, Source("gauss"))  # plain torch looks at them too
    with specification():
        backend.sweep_(wanted, PID, [*first, *then], Source("gauss"))
    assert_same_bits(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_of_bits_over_whole_tiles(dtype: torch.dtype) -> None:
    size = 3 * 2048 + 77  # whole tiles and a rest
    for kind, name, share in itertools.product(KINDS, TERMS, (0.0, 0.05, 0.4, 1.0)):
        mask = torch.rand(size, generator=torch.Generator().manual_seed(3)) < share
        found, wanted = weights(size, dtype), weights(size, dtype)
        native.sweep(kind, found, PID, TERMS[name], pack_bits(mask))
        backend.sweep_(wanted, PID, TERMS[name], Source(kind), mask)
        assert_same_bits(found, wanted)
        still = found[~mask].view(-1), weights(size, dtype)[~mask]
        assert_same_bits(*still)


def test_a_masked_sweep_that_was_spread_out_does_not_wait(monkeypatch) -> None:
    monkeypatch.setattr(native, "_LARGE_MASK", 100)
    found = weights(500, torch.float32)
    wanted = found.clone()
    with jobs.together():
        native.sweep("gauss", found, PID, TERMS["move"], random_mask(500))
        assert not torch.equal(found, wanted)


@pytest.mark.usefixtures("_threads")
def test_normalisation_is_that_of_torch() -> None:
    drawn = torch.Generator().manual_seed(0)
    for shape in ((2, 5, 37), (6, 64), (4, 3, 2, 16), (2, 768)):
        x = 3 + torch.randn(shape, generator=drawn)
        both = [torch.randn(2, shape[-1], generator=drawn) for _ in range(2)]
        assert takes_norm(*both[0], *both[1])
        norm = Norm(tuple(both[0]), tuple(both[1]), 1e-5)
        assert norm.takes(x)
        found = norm(x)
        for half in range(2):
            wanted = F.layer_norm(
                x.chunk(2)[half].double(), shape[-1:], both[0][half].double(),
                both[1][half].double(), 1e-5,
            )  # fmt: skip
            assert torch.allclose(found.chunk(2)[half].double(), wanted, rtol=1e-5, atol=1e-5)
    weight = torch.ones(64)
    assert not takes_norm(weight, weight.half())
    assert not takes_norm(weight, torch.ones(32))
    norm = Norm((weight, weight), (weight, weight), 1e-5)
    for x in (torch.ones(3, 64), torch.ones(4, 64).half(), torch.ones(64, 4).T, torch.ones(4, 32)):
        assert not norm.takes(x)


@pytest.mark.usefixtures("_threads")
def test_a_left_factor_may_lie_either_way() -> None:
    left, right = torch.arange(33.0).view(11, 3) / 8, torch.arange(150.0).view(3, 50) / 16
    (turned,) = by_columns([left])
    assert turned.stride() == (1, 11)
    assert torch.equal(turned, left)
    assert_same_bits(product(left, right), (left.double() @ right.double()).float())
    assert_same_bits(product(turned, right), product(left, right))
    with pytest.raises(ValueError, match="left"):
        product(left.double(), right)


@pytest.mark.parametrize("make", [LazyLowRank, Subspace])
def test_factors_made_at_once_are_those_made_one_by_one(make) -> None:
    finals = []
    for prepares in (True, False):
        model = opt()
        optimizer = ZeroOrder(
            model.named_parameters(), lr=1e-2, eps=1e-2, direction=make(rank=3, refresh_every=2),
            placement=Paired(), model=model,
        )  # fmt: skip
        optimizer.placement.modules.prepares = prepares
        closure = lm_closure(model)
        losses = [optimizer.step(closure) for _ in range(5)]
        if prepares:
            seed, lefts = optimizer.direction._lefts
            assert set(lefts) == set(optimizer.direction.shapes)
            plain = LowRank._all_left(optimizer.direction, seed)
            for pid, left in lefts.items():
                assert_same_bits(plain[pid].contiguous(), left.contiguous())
                rows = range(len(left))
                alone = optimizer.direction._left(
                    pid, seed, optimizer.direction._period(seed), rows, left.device
                )
                assert_same_bits(left.contiguous(), alone.contiguous())
        finals.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert finals[0][0] == finals[1][0]
    assert same_bits(finals[0][1], finals[1][1])
