"""accelerate around our optimizer: its wrapper, its state, its mixed precision."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional as F

from tests.optim.test_standalone import run_block
from tests.optim.tiny import bits, same_bits
from zolab.optim import MeZO, Paired, PerLayer

PLACEMENTS = {"paired": Paired, "per_layer": PerLayer}


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class TestAccelerate:
    def test_the_wrapper_returns_nothing_and_last_has_it_all(self) -> None:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
        optimizer = MeZO(model.named_parameters(), lr=1e-2, seed=4)
        plain = nn.Linear(6, 3)
        plain.load_state_dict(model.state_dict())
        reference = MeZO(plain.named_parameters(), lr=1e-2, seed=4)
        model, prepared = Accelerator(cpu=True).prepare(model, optimizer)
        for _ in range(3):
            assert prepared.step(lambda: F.cross_entropy(model(x), y)) is None
            loss = reference.step(lambda: F.cross_entropy(plain(x), y))
            assert prepared.optimizer.last is optimizer.last
            assert optimizer.last == reference.last
            assert optimizer.last.loss == loss
        optimizer.flush()
        reference.flush()
        assert same_bits(bits(model), bits(plain))

    def test_its_state_goes_round(self) -> None:
        model = nn.Linear(6, 3)
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
        accelerator = Accelerator(cpu=True)
        first = accelerator.prepare(MeZO(model.named_parameters(), lr=1e-2, seed=4))
        first.step(lambda: F.cross_entropy(model(x), y))
        second = accelerator.prepare(MeZO(model.named_parameters(), lr=1e-2, seed=5))
        second.load_state_dict(first.state_dict())
        assert (second.optimizer.seed, second.optimizer.num_steps) == (4, 1)

    @pytest.mark.parametrize("placement", ["paired", "per_layer"])
    def test_a_forward_that_accelerate_put_on_a_module_stays(self, placement: str) -> None:
        """Mixed precision replaces the forward of the model, here an owner of weights itself."""
        torch.manual_seed(0)
        model = nn.Linear(64, 3)
        x, y = torch.randn(8, 64), torch.randint(0, 3, (8,))
        optimizer = MeZO(
            model.named_parameters(), lr=1e-2, placement=PLACEMENTS[placement](), model=model
        )
        model, prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model, optimizer)
        rounded = model(x)

        def closure(copies: int) -> list[torch.Tensor]:
            return [F.cross_entropy(p, y) for p in model(x.repeat(copies, 1)).chunk(copies)]

        optimizer.param_groups[0]["lr"] = 0.0
        prepared.step(closure)
        assert torch.equal(model(x), rounded)
        assert not torch.equal(rounded, F.linear(x, model.weight, model.bias))
        assert optimizer.last.projected_grad != 0.0

    def test_the_example_of_the_page(self) -> None:
        space, _ = run_block("accelerate")
        assert space["loss"] < 1.5
        assert space["optimizer"].num_steps == 50
