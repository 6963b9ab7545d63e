"""First-order references: what they compute, what they keep, and that a resume is exact."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.optim import tiny
from zolab import baselines, compose
from zolab.baselines import APOLLO, LOMO, SGD, AdaLOMO, AdamW, AdamWSN, GaLore, HiFT
from zolab.checkpoint import copy_into, load_tensors, save_tensors, unique_parameters
from zolab.errors import UserError

#: How to make each, with rates at which 12 steps on one batch lower the loss.
MAKE: dict[str, Any] = {
    "adamw": lambda m: AdamW(m, lr=1e-3),
    "sgd": lambda m: SGD(m, lr=0.5),
    "sgd_momentum": lambda m: SGD(m, lr=0.1, momentum=0.9),
    "lomo": lambda m: LOMO(m, lr=0.5),
    "adalomo": lambda m: AdaLOMO(m, lr=0.05),
    "galore": lambda m: GaLore(m, lr=1e-3, rank=4, update_every=4),
    "apollo": lambda m: APOLLO(m, lr=1e-2, rank=4, update_every=4),
    "apollo_mini": lambda m: APOLLO(m, lr=1e-3, rank=1, per="tensor", scale=11.3),
    "adamw_sn": lambda m: AdamWSN(m, lr=1e-3),
    "hift": lambda m: HiFT(m, lr=3e-3),
    "hift_random": lambda m: HiFT(m, lr=3e-3, group_size=2, order="random", seed=1),
}


class Closure:
    """Next-token loss of a tiny model on one of a few batches, with gradients."""

    num_examples = tiny.ROWS
    batches = (None,)

    def __init__(self, model: nn.Module, seed: int = 0, factor: float = 1.0) -> None:
        self.model, self.ids, self.factor = model, tiny.tokens(seed), factor

    def backward(self) -> float:
        logits = self.model(input_ids=self.ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten()) * self.factor
        if torch.isfinite(loss):
            loss.backward()
        return loss.item()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in unique_parameters(model).values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor], atol: float = 1e-6) -> bool:
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MAKE)
def test_learns_and_counts_three_forwards_a_step(name: str) -> None:
    model = tiny.opt()
    learner = MAKE[name](model)
    losses = [learner.step(Closure(model)) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    assert learner.last.num_forwards == 3
    assert learner.last.step == learner.num_steps == 12
    assert not learner.journaled
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_goes_on_from_its_state_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    """Across a new projection and a new round of layers, and after a step that was skipped."""

    def steps(learner: Any, model: nn.Module, first: int, last: int) -> None:
        for i in range(first, last):
            learner.param_groups[0]["lr"] *= 0.98  # as a schedule would
            learner.step(Closure(model, seed=i, factor=math.nan if i == 1 else 1.0))

    whole = tiny.opt()
    undisturbed = MAKE[name](whole)
    steps(undisturbed, whole, 0, 9)

    before = tiny.opt()
    learner = MAKE[name](before)
    steps(learner, before, 0, 5)
    save_tensors(tmp_path / "state", learner.tensors(), {})
    save_tensors(tmp_path / "weights", dict(unique_parameters(before)), {})
    after = tiny.opt()
    again = MAKE[name](after)
    for ours, theirs in zip(again.param_groups, learner.param_groups, strict=True):
        ours["lr"] = theirs["lr"]
    copy_into(after, load_tensors(tmp_path / "weights")[0])
    again.load_tensors(load_tensors(tmp_path / "state")[0], 5)
    steps(again, after, 5, 9)

    assert again.num_steps == 9
    assert same(weights(after), weights(whole))
    mine, theirs = again.tensors(), undisturbed.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("name", MAKE)
def test_loss_that_is_not_finite_moves_nothing(name: str) -> None:
    model = tiny.opt()
    learner = MAKE[name](model)
    before = weights(model)
    assert math.isnan(learner.step(Closure(model, factor=math.nan)))
    assert same(weights(model), before)
    assert learner.last.coefficients is None
    assert learner.num_steps == 1


@pytest.mark.parametrize(
    ("name", "share"),
    [("adamw", 2.0), ("sgd", 0.0), ("sgd_momentum", 1.0), ("lomo", 0.0), ("hift", 2.0)],
)
def test_state_is_as_large_as_declared(name: str, share: float) -> None:
    """In copies of the weights, after every layer had its turn."""
    model = tiny.opt()
    learner = MAKE[name](model)
    for i in range(5):
        learner.step(Closure(model, seed=i))
    numel = sum(p.numel() for p in model.parameters())
    held = sum(t.numel() for k, t in learner.tensors().items() if not k.endswith((":step", ":lr")))
    assert held == share * numel


def test_state_of_projected_matrices_is_low_rank() -> None:
    found = {}
    for name in ("galore", "apollo", "adalomo", "adamw_sn"):
        model = tiny.opt()
        learner = MAKE[name](model)
        learner.step(Closure(model))
        matrix = "model.decoder.layers.0.fc1.weight"  # 64 x 32
        tensors = {k: t.numel() for k, t in learner.tensors().items() if matrix in k}
        found[name] = sum(tensors.values())
    assert found["galore"] == 32 * 4 + 2 * 64 * 4
    assert found["apollo"] == 2 * 64 * 4 + 1  # the projection is drawn again; a norm
    assert found["adalomo"] == 64 + 32
    assert found["adamw_sn"] == 64 * 32 + 64 * 32 // 32 + 1  # subsets of 32; their size


def test_hift_trains_one_block_at_a_time_and_all_in_a_round() -> None:
    model = tiny.opt()
    learner = HiFT(model, lr=1e-3)
    assert len(learner.turns) == 4  # embeddings, two layers, final norm
    moved_by_turn = []
    for i in range(4):
        before = dict(zip(unique_parameters(model), weights(model), strict=True))
        learner.param_groups[0]["lr"] = 1e-3 * (1 - i / 8)
        learner.step(Closure(model, seed=i))
        after = unique_parameters(model)
        moved_by_turn.append({n for n in before if not torch.equal(before[n], after[n])})
        assert learner.last.lr == 1e-3  # until the round is over
    assert all(n.startswith("model.decoder.embed") for n in moved_by_turn[0])
    assert all(n.startswith("model.decoder.layers.0.") for n in moved_by_turn[1])
    assert all("final_layer_norm" in n for n in moved_by_turn[3])
    assert sum(map(len, moved_by_turn)) == len(set.union(*moved_by_turn)) == len(before)


def test_hift_in_one_group_is_adamw() -> None:
    one, other = tiny.opt(), tiny.opt()
    a, b = HiFT(one, lr=1e-3, group_size=99), AdamW(other, lr=1e-3)
    for i in range(3):
        a.step(Closure(one, seed=i))
        b.step(Closure(other, seed=i))
    assert same(weights(one), weights(other))


def test_lomo_is_sgd() -> None:
    one, other = tiny.opt(), tiny.opt()
    a, b = LOMO(one, lr=0.1), SGD(other, lr=0.1)
    for i in range(3):
        a.step(Closure(one, seed=i))
        b.step(Closure(other, seed=i))
    assert close(weights(one), weights(other))


def test_lomo_holds_no_gradient_longer_than_a_layer() -> None:
    """When the last layer's input is reached going back, the head's gradient is gone already."""
    model = tiny.opt()
    learner = LOMO(model, lr=0.1)
    alive = []

    def look(grad: Tensor) -> None:
        alive.append([n for n, p in model.named_parameters() if p.grad is not None])

    model.model.decoder.layers[0].register_full_backward_hook(lambda *args: look(args[0]))
    learner.step(Closure(model))
    assert alive == [[]]


def test_subsets_of_one_weight_are_adamw() -> None:
    one, other = tiny.opt(), tiny.opt()
    a, b = AdamWSN(one, lr=1e-3, subset_size=1), AdamW(other, lr=1e-3)
    for _ in range(3):
        a.step(Closure(one))
        b.step(Closure(other))
    for mine, theirs in zip(one.model.decoder.layers, other.model.decoder.layers, strict=True):
        # where gradients are nothing but rounding, eps decides
        assert torch.allclose(mine.fc1.weight, theirs.fc1.weight, atol=1e-4)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_apollo_scales_the_raw_gradient(per: str, upright: bool) -> None:
    """The first step by hand: Adam's direction for R = P G is its sign, up to rounding."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(*((4, 6) if upright else (6, 4)), bias=False)])

    model = Layers()
    weight = model.layers[0].weight
    start, gradient = weight.detach().clone(), torch.randn(weight.shape)
    learner = APOLLO(model, lr=0.1, rank=2, per=per, scale=3.0, seed=5)
    weight.grad = gradient.clone()
    learner._optimizer.step()
    drawn = learner._optimizer._drawn[weight][1]
    assert drawn.shape == (2, 4)
    flat = gradient.t() if upright else gradient
    low = drawn @ flat
    factor = low.sign().norm(dim=0) / low.norm(dim=0)
    if per == "tensor":
        factor = low.sign().norm() / low.norm()
    update = 3.0 * flat * factor
    assert torch.allclose(start - weight, 0.1 * (update.t() if upright else update), atol=1e-5)
    # what the projection does not see makes the next update larger, by one per cent at most
    moved = weight.detach().clone()
    unseen = torch.linalg.svd(drawn).Vh[3:].t() * torch.full((1, 6), 50.0)
    weight.grad = gradient + (unseen.t() if upright else unseen)
    learner._optimizer.step()
    growth = (moved - weight).norm().item() / (start - moved).norm().item()
    assert growth == pytest.approx(1.01, rel=1e-4)


def test_apollo_projections_depend_on_the_seed_alone() -> None:
    draws = []
    for seed in (0, 0, 1):
        model = tiny.opt()
        learner = APOLLO(model, rank=4, seed=seed)
        learner.step(Closure(model))
        draws.append(next(iter(learner._optimizer._drawn.values()))[1])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("optimizer=lomo", "train.micro_batch_size=4"),
            "train.micro_batch_size = 4: optimizer lomo moves weights during backward",
        ),
        (("optimizer=adalomo", "model.dtype=float16"), "model.dtype = 'float16'"),
        (("optimizer=hift", "sparsity=random"), "has no masked form"),
        (("optimizer=hift", "optimizer.order=sideways"), "bottom_up, top_down, random"),
    ],
)
def test_what_cannot_go_together_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose.check(compose.compose(compose.prepare_overrides(overrides)))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["LOMO", "AdaLOMO", "GaLore", "AdamWSN"])
def test_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"pytorch_optimizer.*install zolab\[baselines\]"):
        getattr(baselines, name)(nn.Linear(2, 2))
