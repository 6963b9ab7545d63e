"""One walk over many parameters gives the bits of a sweep over each."""

from __future__ import annotations

import pytest
import torch

from tests.optim.tiny import lm_closure, opt, same_bits
from zolab.optim import Gaussian, InPlace, Rademacher, ZeroOrder, native
from zolab.optim.backend import Term
from zolab.optim.directions import Kept
from zolab.optim.native import jobs
from zolab.optim.native.walk import walk

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
        walk(kind, weights, list(SIZES), terms, source)
    finally:
        torch.set_num_threads(before)
    for found, want in zip(weights, expected, strict=True):
        assert same_bits([found], [want])


def test_what_c_may_not_walk_over_is_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        walk("gauss", [torch.zeros(4), torch.zeros(4, 4)[:, 0]], [0, 1], [Term(1.0, 1)])
    with pytest.raises(ValueError, match="kept"):
        walk("gauss", [torch.zeros(4)], [0], [Term(1.0, 1)], {1: {0: torch.zeros(3)}})


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
        assert [len(infos) for infos in placement._alike] == [3, len(named) - 3]
        if not together:
            placement._alike = None
        closure = lm_closure(model)
        for _ in range(4):
            optimizer.step(closure)
        optimizer.flush()
        finals.append([p.detach().clone() for p in model.parameters()])
    assert same_bits(*finals)
