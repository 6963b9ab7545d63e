"""Which placement is taken when none is asked for, by the optimizer and by a plan's costs."""

from __future__ import annotations

import pytest
import torch

from tests.optim.tiny import opt
from zolab import compose, optim
from zolab.costs.memory import placement_of

CASES = [
    ([], {}, torch.float32, "in_place"),
    ([], {}, torch.bfloat16, "paired"),
    (
        ["sparsity=small_weights"],
        {"mask": lambda: optim.SmallWeights(0.75)},
        torch.float32,
        "paired",
    ),
    (["optimizer=lozo"], {"direction": optim.LazyLowRank}, torch.float32, "paired"),
    (["optimizer=subzero"], {"direction": optim.Subspace}, torch.float32, "paired"),
    (["optimizer=mezo_momentum"], {"rule": optim.Momentum}, torch.float32, "in_place"),
]


@pytest.mark.parametrize(("overrides", "parts", "dtype", "expected"), CASES)
def test_default(overrides, parts, dtype, expected: str) -> None:
    model = opt(dtype)
    made = {name: make() for name, make in parts.items()}
    optimizer = optim.ZeroOrder(list(model.named_parameters()), model=model, **made)
    assert optimizer.placement.name == expected
    name = str(dtype).removeprefix("torch.")
    cell = compose.check(compose.compose([*overrides, f"model.dtype={name}"]))
    assert placement_of(cell) == expected


def test_without_the_modules_weights_are_walked() -> None:
    optimizer = optim.LOZO(list(opt().named_parameters()))
    assert optimizer.placement.name == "in_place"
