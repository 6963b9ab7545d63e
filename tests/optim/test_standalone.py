"""zolab.optim on its own: plain loops, schedulers, groups, state, any module, the docs' code."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.optim.tiny import bits, same_bits
from zolab.optim import (
    ForwardGradient,
    InPlace,
    MeZO,
    MeZOMomentum,
    OneSidedMeZO,
    Paired,
    PerLayer,
    SparseMeZO,
)
from zolab.optim.late import Unread
from zolab.optim.placements.base import as_closure

TEXT = (Path(__file__).parents[2] / "docs" / "standalone.md").read_text()
PLACEMENTS = {"in_place": InPlace, "paired": Paired, "per_layer": PerLayer}


def blocks() -> dict[str, str]:
    """Python blocks of the page by section title."""
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: code
        for section in sections
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    }


def run_block(title: str, **given: object) -> tuple[dict, str]:
    space: dict = dict(given)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(blocks()[title], space)  # it is the documentation's own code
    return space, out.getvalue()


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def problem(model: nn.Module, dtype: torch.dtype = torch.float32):
    """Loss of a fixed batch, one per copy."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 6, generator=generator).to(dtype)
    y = torch.randint(0, 3, (16,), generator=generator)

    def closure(copies: int = 1) -> list[torch.Tensor]:
        return [F.cross_entropy(part, y) for part in model(x.repeat(copies, 1)).chunk(copies)]

    return closure


class TestDocs:
    def test_the_plain_loop_has_ten_lines_and_learns(self) -> None:
        code = blocks()["A plain loop"]
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        space, printed = run_block("A plain loop")
        assert float(printed) == space["optimizer"].last.loss < 1.2
        assert F.cross_entropy(space["model"](space["x"]), space["y"]).item() < 1.2

    def test_both_signs_in_one_forward(self) -> None:
        space, _ = run_block("Both signs in one forward")
        assert space["optimizer"].num_steps == 20

    def test_groups_schedules_resuming(self) -> None:
        space, _ = run_block("Groups, schedules, resuming")
        optimizer = space["optimizer"]
        assert optimizer.values("lr") == pytest.approx((5e-4, 1e-2))
        assert optimizer.values("eps") == (1e-2, 1e-3)
        assert optimizer.values("weight_decay") == (0.1, 0.0)
        assert space["saved"]["optimizer"]["zero_order"]["step"] == 50

    def test_losses_the_host_does_not_wait_for(self) -> None:
        space, printed = run_block("Losses the host does not wait for")
        assert [float(line) for line in printed.split()] == sorted(
            map(float, printed.split()), reverse=True
        )
        assert len(printed.split()) == 3
        assert isinstance(space["before"], Unread)
        assert space["optimizer"].last.loss < 1.2

    def test_every_block_is_run_somewhere(self) -> None:
        here = {"A plain loop", "Both signs in one forward", "Groups, schedules, resuming"}
        here |= {"Losses the host does not wait for"}
        assert set(blocks()) == here | {"accelerate", "transformers' Trainer"}


class TestClosures:
    @pytest.mark.parametrize("placement", ["in_place", "per_layer"])
    def test_without_argument_it_is_one_copy(self, placement: str) -> None:
        ends = []
        for with_argument in (True, False):
            model = mlp()
            losses = problem(model)
            optimizer = MeZO(
                model.named_parameters(), lr=1e-2, placement=PLACEMENTS[placement](), model=model
            )
            for _ in range(3):
                optimizer.step(losses if with_argument else lambda f=losses: f()[0])
            optimizer.flush()
            ends.append(bits(model))
        assert same_bits(*ends)

    def test_paired_says_what_it_needs_and_leaves_no_trace(self) -> None:
        model = mlp()
        optimizer = MeZO(model.named_parameters(), lr=1e-2, placement=Paired(), model=model)
        losses, before = problem(model), bits(model)
        with pytest.raises(TypeError, match=r"does not take.*paired.*lambda copies.*PerLayer"):
            optimizer.step(lambda: losses(1)[0])
        assert same_bits(before, bits(model))
        optimizer.step(losses)
        assert optimizer.num_steps == 1

    def test_paired_takes_it_where_one_copy_is_all_it_asks_for(self) -> None:
        model = mlp()
        optimizer = OneSidedMeZO(model.named_parameters(), placement=Paired(), model=model)
        losses = problem(model)
        optimizer.step(lambda: losses(1)[0])
        assert optimizer.last.num_forwards == 2

    def test_forward_gradient_takes_it(self) -> None:
        model = mlp()
        optimizer = ForwardGradient(model.named_parameters(), lr=1e-2, model=model)
        losses = problem(model)
        optimizer.step(lambda: losses(1)[0])
        assert optimizer.last.projected_grad != 0.0

    def test_estimate_then_step_is_step(self) -> None:
        ends = []
        for apart in (True, False):
            model = mlp()
            optimizer, losses = MeZO(model.named_parameters(), lr=1e-2), problem(model)
            for _ in range(3):
                if apart:
                    loss = optimizer.estimate(losses)
                    assert optimizer.step() == loss
                else:
                    optimizer.step(losses)
            optimizer.flush()
            ends.append(bits(model))
        assert same_bits(*ends)

    def test_which_closures_take_the_number_of_copies(self) -> None:
        def named(copies: int = 1, scale: float = 2.0) -> list[float]:
            return [scale] * copies

        for takes in (named, lambda copies: [2.0] * copies, lambda n: [2.0] * n, lambda *n: [2.0]):
            assert as_closure(takes) is takes
        for single in (lambda: 2.0, lambda value=2.0: value, functools.partial(lambda a: a, 2.0)):
            assert as_closure(single)(1) == [2.0]

    def test_a_step_without_an_estimate_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="estimate"):
            MeZO(mlp().named_parameters()).step()


class TestGroups:
    @pytest.mark.parametrize("placement", PLACEMENTS)
    def test_own_lr_eps_and_weight_decay_by_hand(self, placement: str) -> None:
        """θ_g ← (1 - η_g λ_g) θ_g - η_g (L+ - L-)/(2 ε_g) z_g, losses at θ_g ± ε_g z_g."""
        model, hand = mlp(torch.float64), mlp(torch.float64)
        settings = [
            {"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.3},
            {"lr": 3e-2, "eps": 5e-2, "weight_decay": 0.0},
        ]
        groups = [
            {"params": list(part.named_parameters(prefix=name)), **own}
            for (name, part), own in zip([("0", model[0]), ("2", model[2])], settings, strict=True)
        ]
        optimizer = MeZO(groups, seed=3, placement=PLACEMENTS[placement](), model=model)
        own = {id(p): settings[0 if name.startswith("0") else 1]
               for name, p in hand.named_parameters()}  # fmt: skip
        by_name = dict(hand.named_parameters())
        losses, hand_losses = problem(model, torch.float64), problem(hand, torch.float64)
        cpu = torch.device("cpu")
        for step in (1, 2, 3):
            optimizer.step(losses)
            seed = optimizer.seed_of(step, 0)
            with torch.no_grad():
                z = {}
                for info in optimizer.infos:
                    param = by_name[info.name]
                    drawn = optimizer.direction.z(info.pid, seed, 0, info.numel, cpu)
                    z[info.name] = drawn.double().view(param.shape)
                both = []
                for sign in (1.0, -2.0):
                    for name, param in by_name.items():
                        param += sign * own[id(param)]["eps"] * z[name]
                    both.append(hand_losses()[0].item())
                for name, param in by_name.items():
                    group = own[id(param)]
                    param += group["eps"] * z[name]
                    c = (both[0] - both[1]) / (2 * group["eps"])
                    param *= 1 - group["lr"] * group["weight_decay"]
                    param -= group["lr"] * c * z[name]
            assert optimizer.last.losses == pytest.approx(both, rel=1e-12)
            assert optimizer.last.lr == 1e-2
        optimizer.flush()
        for name, param in model.named_parameters():
            torch.testing.assert_close(param, by_name[name], rtol=1e-10, atol=1e-12)

    def test_a_bad_group_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"eps = 0"):
            MeZO([{"params": mlp().named_parameters(), "eps": 0.0}])


class TestSchedulers:
    SCHEDULERS = (
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=8, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    )

    @pytest.mark.parametrize("make", SCHEDULERS)
    @pytest.mark.parametrize("apart", [False, True])
    def test_the_rate_of_each_step_is_the_scheduler_s(self, make, apart: bool) -> None:
        model = mlp()
        optimizer, losses = MeZO(model.named_parameters(), lr=1e-2, seed=1), problem(model)
        scheduler = make(optimizer)
        fixed = mlp()
        rates, other = [], MeZO(fixed.named_parameters(), lr=1.0, seed=1)
        for _ in range(6):
            rates.append(optimizer.param_groups[0]["lr"])
            if apart:
                optimizer.estimate(losses)
                optimizer.step()
            else:
                optimizer.step(losses)
            assert optimizer.last.lr == rates[-1]
            other.param_groups[0]["lr"] = rates[-1]
            other.step(problem(fixed))
            scheduler.step()
        assert len(set(rates)) > 3
        optimizer.flush()
        other.flush()
        assert same_bits(bits(model), bits(fixed))

    def test_plateau(self) -> None:
        optimizer = MeZO(mlp().named_parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        for _ in range(3):
            scheduler.step(1.0)
        assert optimizer.param_groups[0]["lr"] < 1.0


class TestState:
    METHODS = (MeZO, MeZOMomentum, SparseMeZO)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("placement", PLACEMENTS)
    def test_a_round_trip_through_a_file_goes_on_bit_for_bit(
        self, method, placement: str, tmp_path: Path
    ) -> None:
        def start(seed: int):
            model = mlp()
            optimizer = method(
                model.named_parameters(), lr=1e-2, seed=seed, model=model,
                placement=PLACEMENTS[placement](),
            )  # fmt: skip
            return model, optimizer, problem(model)

        model, optimizer, losses = start(7)
        for step in range(6):
            if step == 3:
                state = {"optimizer": optimizer.state_dict(), "model": model.state_dict()}
                torch.save(state, tmp_path / "state.pt")
            optimizer.step(losses)
        optimizer.flush()
        other, resumed, other_losses = start(8)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        other.load_state_dict(state["model"])
        resumed.load_state_dict(state["optimizer"])
        assert (resumed.seed, resumed.num_steps) == (7, 3)
        for _ in range(3):
            resumed.step(other_losses)
        resumed.flush()
        assert same_bits(bits(model), bits(other))

    @pytest.mark.parametrize("weights_first", [True, False])
    def test_going_back_in_the_middle_of_things(self, weights_first: bool) -> None:
        """What `InPlace` has deferred belongs to the weights that are thrown away."""
        model = mlp()
        optimizer, losses = MeZO(model.named_parameters(), lr=1e-2, seed=2), problem(model)
        optimizer.step(losses)
        kept = optimizer.state_dict()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        ends = []
        for _ in range(2):
            optimizer.step(losses)
            optimizer.step(losses)
            optimizer.flush()
            ends.append(bits(model))
            optimizer.step(losses)
            optimizer.estimate(losses)  # not clean, and half a step pending
            if weights_first:
                model.load_state_dict(weights)
                optimizer.load_state_dict(kept)
            else:
                optimizer.load_state_dict(kept)
                model.load_state_dict(weights)
            with pytest.raises(RuntimeError, match="estimate"):
                optimizer.step()
        assert same_bits(*ends)


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after pretraining
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_labels=4,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


class TestVision:
    @pytest.mark.parametrize(("make", "rate"), [(conv_net, 1e-2), (vit, 2e-3)])
    def test_in_place_and_paired_agree_and_learn(self, make, rate: float) -> None:
        generator = torch.Generator().manual_seed(4)
        images = torch.randn(8, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        records, ends = {}, {}
        for name in ("in_place", "paired"):
            model = make()
            buffers = {key: value.clone() for key, value in model.named_buffers()}
            optimizer = MeZO(
                model.named_parameters(), lr=rate, eps=1e-3, seed=5, model=model,
                placement=PLACEMENTS[name](),
            )  # fmt: skip

            def closure(copies: int = 1, model: nn.Module = model) -> list[torch.Tensor]:
                out = model(images.repeat(copies, 1, 1, 1))
                logits = getattr(out, "logits", out)
                return [F.cross_entropy(part, labels) for part in logits.chunk(copies)]

            before = closure()[0].item()
            records[name] = []
            for _ in range(60):
                optimizer.step(closure)
                records[name].append(optimizer.last)
            optimizer.flush()
            ends[name] = [p.detach() for p in model.parameters()]
            assert closure()[0].item() < before - 0.05
            for key, value in model.named_buffers():
                assert torch.equal(value, buffers[key])
        for a, b in zip(records["in_place"][:10], records["paired"][:10], strict=True):
            assert a.losses == pytest.approx(b.losses, abs=2e-5)
        for a, b in zip(ends["in_place"], ends["paired"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=5e-3)
