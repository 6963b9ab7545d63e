"""Inner products made by the pass that writes a layer's input: the same bits, or not used."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.optim.native.parts import assert_same_bits
from tests.optim.tiny import lm_closure, opt
from zolab.optim import LayerMask, LazyLowRank, Paired, PerLayer, Subspace, ZeroOrder, native
from zolab.optim.native.norm import Norm
from zolab.optim.native.thin import Inners, Thin
from zolab.optim.placements.following import READERS, Following

pytestmark = pytest.mark.skipif(
    not (native.available() and native._library().thin_rank), reason="no kernel here"
)

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(5))


def make(model: nn.Module, placement=None, direction=None, mask=None) -> ZeroOrder:
    return ZeroOrder(
        model.named_parameters(), lr=1e-2, eps=1e-2, seed=3, model=model, mask=mask,
        placement=placement or Paired(), direction=direction or LazyLowRank(2, 3),
    )  # fmt: skip


def steps(model: nn.Module, closure: Callable, count: int = 4, **options) -> tuple:
    optimizer = make(model, **options)
    losses = []
    for _ in range(count):
        optimizer.step(closure)
        losses.append(optimizer.last.losses)
    return losses, [p.detach().clone() for p in model.parameters()]


def assert_same(found: tuple, expected: tuple) -> None:
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        assert_same_bits(one, other)


@pytest.fixture
def used(monkeypatch) -> list[tuple[int, int, bool]]:
    """n and m of layers that were given what they need of their input, and whether it was that."""
    out, add_ = [], Thin.add_

    def added(self, out_, x, relu=False, given=None, following=None) -> bool:
        done = add_(self, out_, x, relu, given, following)
        if given is not None:
            out.append((self.n, self.m, not self.differs))
        return done

    monkeypatch.setattr(Thin, "add_", added)
    return out


def apart(monkeypatch) -> None:
    """Every layer makes its own."""
    monkeypatch.setattr(Following, "run", lambda self, key, x, forward: forward(x))


class Body(nn.Module):
    """Two layers after a normalisation, and what happens on the way there."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(6)
        self.layers = nn.ModuleList(nn.Linear(6, 9) for _ in range(count))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = h if self.between is None else self.between(h)
        return sum(layer(h).sin() for layer in self.layers)

    def closure(self, copies: int) -> list[float]:
        out = self(torch.cat([X] * copies))
        return [float(part.square().mean()) for part in out.chunk(copies)]


# -- kernels ---------------------------------------------------------------------------------------


def thins(n: int, widths: list[int], ranks: list[int], scales=(0.5, -0.25)) -> list[Thin]:
    drawn = torch.Generator().manual_seed(n)
    return [
        Thin(torch.randn(r, m, generator=drawn).T, torch.randn(r, n, generator=drawn).T, scales)
        for m, r in zip(widths, ranks, strict=True)
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "n"), [(2, 5), (6, 16), (26, 77), (700, 400)])
def test_what_passes_make_is_what_layers_make(rows: int, n: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        drawn = torch.Generator().manual_seed(rows)
        x = torch.randn(rows, 33, generator=drawn)
        (writer,) = thins(33, [n], [3])
        weights = torch.randn(4, n, generator=drawn)
        norm = Norm((weights[0], weights[1]), (weights[2], weights[3]), 1e-5)
        readers = thins(n, [7, 65, 130, 16], [1, 2, 9, 50])
        following = Inners(readers)
        for relu in (False, True, None):
            given = following.room(rows)
            if relu is None:
                out = norm(torch.randn(rows, n, generator=drawn), following)
            else:
                out = torch.randn(rows, n, generator=drawn)
                assert writer.add_(out, x, relu, following=following)
            for reader, one in zip(readers, given, strict=True):
                found, expected = torch.zeros(2, rows, reader.m)
                assert reader.add_(found, out, given=one)
                assert not reader.differs
                assert reader.add_(expected, out)
                assert_same_bits(found, expected)
                assert found.any()
    finally:
        torch.set_num_threads(before)


def test_one_sign_is_that_of_all_rows() -> None:
    (reader,) = thins(6, [5], [2], (0.5,))
    following = Inners([reader])
    (given,) = following.room(8)
    both = (torch.ones(6), torch.ones(6)), (torch.zeros(6), torch.zeros(6))
    out = Norm(*both, 1e-5)(torch.randn(8, 6), following)
    assert reader.add_(torch.zeros(8, 5), out, given=given)
    found, expected = torch.zeros(2, 8, 5)
    reader.add_(found, out, given=given)
    reader.add_(expected, out)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("n", [6, 16, 70])
@pytest.mark.parametrize("rank", [2, 20])
def test_what_belongs_to_other_rows_is_noticed(rank: int, n: int) -> None:
    (reader,) = thins(n, [5], [rank])
    following = Inners([reader])
    weights = torch.ones(n), torch.zeros(n)
    (given,) = following.room(80)
    out = Norm((weights[0],) * 2, (weights[1],) * 2, 1e-5)(torch.randn(80, n), following)

    def differs(x: Tensor, given=given) -> bool:
        assert reader.add_(torch.zeros(80, 5), x, given=given)
        return reader.differs

    for changed in (out * 2, out + 1e-6, out.flip(0), -out, out * torch.nan):
        assert differs(changed)
    for row in range(80):
        masked = out.clone()
        masked[row] *= 0.0
        assert differs(masked)
    for column in range(n - n % 16 if n > 16 else n):
        shifted = out.clone()
        shifted[:, column] += 1.0
        assert differs(shifted)
    assert not differs(out)
    assert not differs(out.clone())
    assert not differs(out * 2, None)


def test_wrong_sizes_are_named() -> None:
    reader, other = *thins(6, [5], [2]), *thins(7, [5], [2])
    with pytest.raises(ValueError, match=r"widths \[6, 7\]"):
        Inners([reader, other])
    given = Inners([reader]).room(8)[0]
    with pytest.raises(ValueError, match="given"):
        reader.add_(torch.zeros(12, 5), torch.zeros(12, 6), given=given)
    with pytest.raises(ValueError, match="following"):
        reader.add_(torch.zeros(8, 5), torch.zeros(8, 6), following=Inners([reader]))


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", [Paired, PerLayer])
@pytest.mark.parametrize("direction", [LazyLowRank, Subspace])
def test_losses_and_weights_are_those_of_layers_by_themselves(
    placement, direction, used, monkeypatch
) -> None:
    model = opt()
    kind = {"placement": placement(), "direction": direction(3, 3)}
    found = steps(model, lm_closure(model), **kind)
    assert all(right for *_, right in used)
    layers = model.config.num_hidden_layers
    width, inside = model.config.hidden_size, model.config.ffn_dim
    assert used.count((inside, width, True)) >= layers  # through the ReLU
    if placement is Paired:
        assert used.count((width, width, True)) == 3 * 3 * layers  # q, k, v from the second step on
        assert used.count((width, inside, True)) == 3 * layers
    used.clear()
    apart(monkeypatch)
    model = opt()
    kind["placement"] = placement()
    assert_same(found, steps(model, lm_closure(model), **kind))
    assert not used


CHANGES = {
    "all of it": lambda h: h.mul_(1.5),
    "a row": lambda h: h.index_fill_(0, torch.tensor([2]), 0.5),
    "a column": lambda h: h.index_fill_(2, torch.tensor([4]), 0.5),
    "through a view": lambda h: (h.view(-1).add_(0.1), h)[1],
    "nothing": lambda h: h,
    "a copy": lambda h: h.clone(),
    "its halves in turn": lambda h: torch.cat(h.chunk(2)[::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_on_its_way_is_made_anew(change: str, used, monkeypatch) -> None:
    found = steps(body := Body(CHANGES[change]), body.closure)
    right = [right for *_, right in used]
    if change in ("a copy", "its halves in turn"):
        assert not right
    else:
        assert right == [change == "nothing"] * 6
    apart(monkeypatch)
    assert_same(found, steps(body := Body(CHANGES[change]), body.closure))


def test_readers_beyond_the_first_make_their_own(used, monkeypatch) -> None:
    found = steps(body := Body(count=READERS + 2), body.closure)
    assert len(used) == 3 * READERS
    apart(monkeypatch)
    assert_same(found, steps(body := Body(count=READERS + 2), body.closure))


def test_layers_that_a_step_leaves_out(used, monkeypatch) -> None:
    mask = {"mask": LayerMask(0.5)}
    found = steps(model := opt(), lm_closure(model), 8, **mask)
    assert used
    apart(monkeypatch)
    mask = {"mask": LayerMask(0.5)}
    assert_same(found, steps(model := opt(), lm_closure(model), 8, **mask))


def test_a_layer_that_reads_now_and_then(used, monkeypatch) -> None:
    class Sometimes(Body):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            h = self.norm(x)
            return sum(layer(h).sin() for layer in self.layers[self.calls % 2 :])

    found = steps(body := Sometimes(), body.closure, 6)
    assert all(right for *_, right in used)
    assert len(used) == 7  # the second layer always, the first from its second time on
    apart(monkeypatch)
    assert_same(found, steps(body := Sometimes(), body.closure, 6))


def test_an_evaluation_leaves_nothing_behind() -> None:
    optimizer = make(body := Body())
    held = []

    def closure(copies: int) -> list[float]:
        following = optimizer.placement.modules._ready.following
        out = body.closure(copies)
        held.append((len(following._inners), bool(following._written)))
        # What was taken is gone: a pass holds no more than its next readers need.
        assert not any(given for *_, given in following._written.values())
        return out

    for _ in range(2):
        optimizer.step(closure)
    following = optimizer.placement.modules._ready.following
    assert held == [(0, True), (1, True)]
    assert not following._linear
    assert not following._inners
    assert not following._written
    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(lambda copies: (body.closure(copies), _stop()))
    gc.collect()
    assert not following._written


def _stop() -> None:
    raise RuntimeError("stop")
