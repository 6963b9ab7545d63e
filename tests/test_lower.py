"""Layers below the lowest one that moves pass once for both signs, in models of all families."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.families import FAMILIES
from tests.optim.tiny import small_lm
from zolab.models.tuning.subset import Head
from zolab.optim import LayerMask, Paired, ZeroOrder
from zolab.optim.offload.blocks import find_blocks
from zolab.optim.placements.lower import FAMILIES as KNOWN

ROWS, TOKENS = 5, 7


def model_of(name: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = FAMILIES[name]
    auto = AutoModelForMaskedLM if family.masked else AutoModelForCausalLM
    torch.manual_seed(3)
    return auto.from_config(CONFIG_MAPPING[name](**family.config)).eval()


def closure_of(model: nn.Module, masked: bool = False, rows: int = ROWS) -> Callable:
    ids = torch.randint(4, 120, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    given = {"attention_mask": torch.ones_like(ids)} if masked else {"use_cache": False}
    if masked:
        given["attention_mask"][1, 4:] = 0

    def closure(copies: int = 1) -> list[float]:
        inputs = {k: v.repeat(copies, 1) if k == "attention_mask" else v for k, v in given.items()}
        logits = model(input_ids=ids.repeat(copies, 1), **inputs).logits
        return [
            F.cross_entropy(part.flatten(0, 1), ids.flatten()).item()
            for part in logits.chunk(copies)
        ]

    return closure


def optimizer_of(model: nn.Module, **options) -> ZeroOrder:
    options = {"lr": 1e-3, "eps": 1e-2, "seed": 3, "placement": Paired(), **options}
    return ZeroOrder(model.named_parameters(), model=model, **options)


def rows_of_layers(model: nn.Module) -> list[list[int]]:
    """Rows that go into each layer, call by call."""
    seen: list[list[int]] = []
    for block in find_blocks(model):
        seen.append([])
        block.module.register_forward_hook(
            lambda m, args, out, calls=seen[-1]: calls.append(len(args[0]))
        )
    return seen


def losses(optimizer: ZeroOrder, closure: Callable, steps: int = 3) -> list[tuple[float, ...]]:
    out = []
    for _ in range(steps):
        optimizer.step(closure)
        out.append(optimizer.last.losses)
    return out


@pytest.mark.parametrize("trains", ["upper", "head"])
@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_lower_layers_pass_once_with_the_losses_of_the_plain_way(name: str, trains: str):
    found = []
    for plain in (True, False):
        model = model_of(name)
        if trains == "head":
            Head().apply(model, 0)
        else:
            moving = {id(p) for p in find_blocks(model)[1].module.parameters()}
            for p in model.parameters():
                p.requires_grad_(id(p) in moving)
        optimizer = optimizer_of(model)
        if plain:
            optimizer.placement.lower.usable = False
        calls = rows_of_layers(model)
        found.append(losses(optimizer, closure_of(model, FAMILIES[name].masked)))
    assert found[0][0][0] != found[0][0][1]
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert optimizer.placement.lower.usable
    last = [ROWS, 2 * ROWS] if trains == "upper" else [ROWS, ROWS]
    assert [layer[-1] for layer in calls] == last


def test_full_tuning_goes_the_plain_way_and_is_called_no_more_often() -> None:
    model = model_of("opt")
    calls = rows_of_layers(model)
    losses(optimizer_of(model), closure_of(model))
    assert calls == [[2 * ROWS] * 3] * 2


def test_a_layer_mask_moves_the_place_from_step_to_step() -> None:
    found, lowest = [], []
    for plain in (True, False):
        model = small_lm()
        mask = LayerMask(0.5, always_active=["head", "final_norm"])
        optimizer = optimizer_of(model, mask=mask)
        assert not optimizer.placement.lower.usable, "nobody knows this model"
        optimizer.placement.lower.usable = not plain
        calls = rows_of_layers(model)
        closure = closure_of(model)
        found.append([])
        for _ in range(8):
            found[-1] += losses(optimizer, closure, 1)
            lowest.append([layer[-1] for layer in calls])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert {tuple(rows) for rows in lowest[8:]} == {(ROWS, 2 * ROWS), (2 * ROWS, 2 * ROWS)}


class Remembers(nn.Module):
    """Its layers hand rows on beside their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_lm()
        self.inner.requires_grad_(False)
        self.inner.layers[1].requires_grad_(True)
        first, second = self.inner.layers
        self.kept: torch.Tensor | None = None
        first.register_forward_hook(self._keep)
        second.register_forward_hook(lambda m, args, out: out + self.kept)

    def _keep(self, module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        self.kept = out

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> object:
        return self.inner(input_ids)


def test_a_model_that_keeps_rows_elsewhere_goes_the_plain_way() -> None:
    found = []
    for plain in (True, False):
        model = Remembers()
        optimizer = optimizer_of(model)
        if plain:
            optimizer.placement.lower.usable = False
        found.append(losses(optimizer, closure_of(model)))
    assert optimizer.placement.lower.usable is False
    assert found[0] == found[1]


def roberta(num_layers: int) -> nn.Module:
    """Only the second layer trains."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(3)
    config = {**FAMILIES["roberta"].config, "num_hidden_layers": num_layers}
    model = RobertaForMaskedLM(RobertaConfig(**config)).eval()
    model.requires_grad_(False)
    find_blocks(model)[1].module.requires_grad_(True)
    return model


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_batches_before_do_not_matter(order: tuple[bool, bool]) -> None:
    """Masks that only some batches have reach the layers above with the rows of both signs."""
    found = []
    for alone in (False, True):
        model = roberta(4)
        optimizer = optimizer_of(model, lr=0.0)
        calls = rows_of_layers(model)
        for padded in order[1:] if alone else order:
            closure = closure_of(model, padded)
            if alone:
                optimizer.num_steps = 1
            optimizer.step(closure)
        found.append(optimizer.last.losses)
        assert [layer[-1] for layer in calls] == [ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS]
    assert found[0] == found[1]


def test_weights_that_move_before_the_layers_make_a_batch_go_wide() -> None:
    model = roberta(3)
    model.roberta.embeddings.LayerNorm.requires_grad_(True)
    calls = rows_of_layers(model)
    optimizer = optimizer_of(model)
    found = losses(optimizer, closure_of(model, True), 2)
    assert [layer for layer in calls] == [[2 * ROWS] * 2] * 3
    model = roberta(3)
    model.roberta.embeddings.LayerNorm.requires_grad_(True)
    optimizer = optimizer_of(model)
    optimizer.placement.lower.usable = False
    assert losses(optimizer, closure_of(model, True), 2) == found


def test_every_known_family_is_compared_with_the_plain_way() -> None:
    assert set(FAMILIES) == KNOWN


def test_one_example_and_halves_that_differ_go_the_plain_way() -> None:
    model = small_lm()
    model.requires_grad_(False)
    model.layers[1].requires_grad_(True)
    optimizer = optimizer_of(model)
    optimizer.placement.lower.usable = True
    calls = rows_of_layers(model)
    losses(optimizer, closure_of(model), 1)
    assert [layer[-1] for layer in calls] == [ROWS, 2 * ROWS]
    losses(optimizer, closure_of(model, rows=1), 1)
    assert [layer[-1] for layer in calls] == [2, 2]

    def uneven(copies: int) -> list[float]:
        ids = torch.arange(copies * 2 * TOKENS).view(copies * 2, TOKENS) % 100
        return [part.mean().item() for part in model(ids).logits.chunk(copies)]

    losses(optimizer, uneven, 1)
    assert [layer[-1] for layer in calls] == [4, 4]
