"""What cannot be trained, or would be lost in rounding, is said by name and number."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.optim.methods import METHODS, build
from tests.optim.tiny import small_lm
from zolab.optim import (
    InPlace,
    LargeWeights,
    LayerMask,
    MeZO,
    Paired,
    RandomMask,
    SmallWeights,
    ZeroOrder,
)


def weights(scale: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    model = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        model.weight.normal_(std=scale, generator=torch.Generator().manual_seed(0))
    return model.to(dtype)


@pytest.mark.parametrize("name", METHODS)
def test_everything_frozen_is_an_error(name: str) -> None:
    model = small_lm().requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing to train.*embed_tokens.weight.*requires_grad"):
        build(name, model)


def test_whole_numbers_are_named() -> None:
    codes = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"nothing to train.*codes \(torch\.int64\) cannot"):
        MeZO([("codes", codes)])
    with pytest.warns(UserWarning, match=r"not trained.*codes \(torch\.int64\)"):
        MeZO([("codes", codes), ("w", nn.Parameter(torch.ones(3)))])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_other_numbers_are_named(dtype: torch.dtype) -> None:
    odd = nn.Parameter(torch.ones(3).to(dtype))
    with pytest.raises(ValueError, match=f"parameter odd has dtype {dtype}.*expected float32"):
        MeZO([("w", nn.Parameter(torch.ones(3))), ("odd", odd)])


def test_a_parameter_without_values_is_named() -> None:
    with pytest.raises(ValueError, match="w is on the meta device"):
        MeZO([("w", nn.Parameter(torch.zeros(3, device="meta")))])


@pytest.mark.parametrize("kind", [SmallWeights, LargeWeights, RandomMask])
def test_a_mask_that_leaves_nothing_is_an_error(kind) -> None:
    vectors = [("norm.weight", nn.Parameter(torch.ones(9))), ("b", nn.Parameter(torch.ones(3)))]
    with pytest.raises(
        ValueError, match=r"sparsity = 0\.5: nothing would move.*vectors = 'frozen'"
    ):
        ZeroOrder(vectors, mask=kind(0.5, "frozen"))
    ZeroOrder(vectors, mask=kind(0.5, "dense"))
    ZeroOrder(vectors, mask=kind(0.5, "masked"))


def test_a_share_so_small_that_chance_leaves_none_is_an_error() -> None:
    model = nn.Linear(20, 20, bias=False)
    with pytest.raises(ValueError, match=r"nothing would move, none of 400 masked"):
        ZeroOrder(model.named_parameters(), mask=RandomMask(1 - 1e-7))
    optimizer = ZeroOrder(model.named_parameters(), mask=SmallWeights(1 - 1e-7))
    assert optimizer.mask.num_active(optimizer.infos, 1) == 1  # the smallest of all
    with pytest.raises(ValueError, match="no trained parameter has a layer number"):
        ZeroOrder(model.named_parameters(), mask=LayerMask(0.5))


@pytest.mark.parametrize(
    ("dtype", "scale", "eps", "unit"),
    [
        (torch.bfloat16, 1.0, 1e-3, "0.0039"),
        (torch.bfloat16, 0.02, 1e-4, "0.00012"),
        (torch.float16, 1.0, 1e-4, "0.00049"),
        (torch.float32, 1.0, 1e-8, "6e-08"),
    ],
)
@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_eps_below_the_rounding_of_the_weights_warns_with_the_number(
    placement, dtype: torch.dtype, scale: float, eps: float, unit: str
) -> None:
    model = weights(scale, dtype)

    def said(eps: float) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            MeZO(model.named_parameters(), eps=eps, placement=placement(), model=model)
        return [str(w.message) for w in caught if "eps =" in str(w.message)]

    (message,) = said(eps)
    assert f"eps = {eps:g} is below the rounding unit {unit} of weight" in message
    assert str(dtype) in message
    assert said(100 * eps) == []


def test_walking_16_bit_weights_warns() -> None:
    model = weights(0.02, torch.bfloat16)
    with pytest.warns(UserWarning, match=r"in_place with torch\.bfloat16.*0\.00012.*Paired"):
        MeZO(model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MeZO(model.named_parameters(), model=model)  # paired by default
