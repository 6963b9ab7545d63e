"""A ReLU in the last pass of the layer before it: only where nobody could tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.optim.native.parts import assert_same_bits
from tests.optim.tiny import lm_closure, opt
from zolab.optim import LazyLowRank, Paired, PerLayer, ZeroOrder, native
from zolab.optim.native.thin import Thin
from zolab.optim.placements.relus import LOOKS, Relus

pytestmark = pytest.mark.skipif(
    not (native.available() and native._library().thin_rank), reason="no kernel here"
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))


def make(model: nn.Module, placement=None) -> ZeroOrder:
    return ZeroOrder(
        model.named_parameters(), lr=1e-2, eps=1e-2, seed=3, model=model,
        placement=placement or Paired(), direction=LazyLowRank(2, 3),
    )  # fmt: skip


def steps(model: nn.Module, closure: Callable, count: int = 4, placement=None) -> list:
    optimizer = make(model, placement)
    out = []
    for _ in range(count):
        optimizer.step(closure)
        out.append(optimizer.last.losses)
    return [out, [p.detach().clone() for p in model.parameters()]]


@pytest.fixture
def passed(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what ReLUs got beside the layers' own pass."""
    out, relu = [], torch.relu

    def forward(self, x: Tensor) -> Tensor:
        out.append(tuple(x.shape))
        return relu(x)

    monkeypatch.setattr(nn.ReLU, "forward", forward)
    return out


class Body(nn.Module):
    """One hidden layer, and what else is done with what the first layer returns."""

    def __init__(self, also: Callable | None = None, before: Callable | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)
        self.also, self.before = also, before

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        more = self.before(h) if self.before else 0.0
        y = self.last(self.act(h))
        return (y + more + (self.also(h) if self.also else 0.0)).square()

    def closure(self, copies: int) -> list[Tensor]:
        out = self(torch.cat([X] * copies))
        return [part.mean() for part in out.chunk(copies)]


def plain(monkeypatch) -> None:
    monkeypatch.setattr(Relus, "run", lambda self, module, forward: forward(False))


@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_losses_and_weights_are_those_of_relus_by_themselves(placement, passed, monkeypatch):
    model = opt()
    fused = steps(model, lm_closure(model), placement=placement())
    layers = sum(type(m) is nn.ReLU for m in model.modules())
    assert layers
    assert len(passed) == layers
    plain(monkeypatch)
    model = opt()
    expected = steps(model, lm_closure(model), placement=placement())
    assert fused[0] == expected[0]
    for found, want in zip(fused[1], expected[1], strict=True):
        assert_same_bits(found, want)


def test_the_kernels_relu_is_torchs_for_every_number() -> None:
    odd = torch.tensor([-0.0, 0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, -1.0, 1e-45])
    for m in (1, 5, 16, 77, 130):
        x = odd.repeat(6 * m)[: 6 * m].view(6, m).clone()
        thin = Thin(torch.zeros(2, m).T, torch.zeros(2, 3).T, (1.0, -1.0))
        bare = x.clone()
        assert thin.add_(bare, torch.ones(6, 3))
        assert thin.add_(x, torch.ones(6, 3), relu=True)
        assert_same_bits(x, torch.relu(bare))
        assert x.isnan().any() or m == 1


READERS = {
    "a sum": lambda h: h.mean(),
    "a choice that hides NaN": lambda h: torch.where(h > 0, 1.0, 0.0).mean(),
    "a view": lambda h: h.view(-1)[0],
    "its shape": lambda h: float(h.shape[-1]),
}


@pytest.mark.parametrize("when", ["also", "before"])
@pytest.mark.parametrize("reader", READERS)
def test_what_another_reads_stays(reader: str, when: str, passed, monkeypatch) -> None:
    model = Body(**{when: READERS[reader]})
    found = steps(model, model.closure)
    assert len(passed) == 4
    plain(monkeypatch)
    model = Body(**{when: READERS[reader]})
    assert found[0] == steps(model, model.closure)[0]


def test_what_is_kept_beyond_the_forward_stays(passed) -> None:
    kept: list[Tensor] = []
    model = Body(before=lambda h: kept.append(h) or 0.0)
    steps(model, model.closure)
    assert len(passed) == len(kept) == 4
    assert all(h.isfinite().all() for h in kept)


def test_a_hook_sees_what_there_is(passed) -> None:
    model, seen = Body(), []
    optimizer = make(model)
    optimizer.step(model.closure)
    optimizer.step(model.closure)
    assert len(passed) == 1
    hook = model.act.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    optimizer.step(model.closure)
    hook.remove()
    hook = model.first.register_forward_hook(lambda m, args, out: seen.append((out, out.relu())))
    optimizer.step(model.closure)
    hook.remove()
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, out: None)
    optimizer.step(model.closure)
    hook.remove()
    assert len(passed) == 4
    optimizer.step(model.closure)
    assert len(passed) == 4
    for before, after in seen:
        assert torch.equal(before.relu(), after)
        assert (before < 0).any()


@pytest.mark.parametrize("change", ["reads", "leaves out"])
def test_a_model_that_changes_later_is_evaluated_again(change: str, passed, monkeypatch) -> None:
    def run() -> list:
        model = Body()
        optimizer, out = make(model), []
        for step in range(4):
            if step == 2 and change == "reads":
                model.also = READERS["a sum"]
            elif step == 2:
                model.act = nn.Sigmoid()
            optimizer.step(model.closure)
            out.append(optimizer.last.losses)
        return out

    found = run()
    assert len(passed) == (3 if change == "reads" else 1)
    plain(monkeypatch)
    assert found == run()


def test_a_loss_that_is_nan_by_itself_stays_so(passed) -> None:
    model = Body()
    optimizer = make(model)
    for step in range(4):
        scale = torch.nan if step == 2 else 1.0
        optimizer.step(lambda copies, by=scale: [by * loss for loss in model.closure(copies)])
        assert (optimizer.last.coefficients is None) == (step == 2)
    assert len(passed) == 3  # followed, made again, and from then on


def test_layers_that_a_step_leaves_out_are_looked_for_a_few_times(passed) -> None:
    model = Body()
    ends = Relus(model)
    for _ in range(LOOKS + 2):
        with ends.evaluating([1, id(model.first)], on=True):
            followed = ends._following is not None
    assert not followed
    assert ends._looks == LOOKS
