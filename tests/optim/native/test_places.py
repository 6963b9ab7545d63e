"""Masks held as places: the same mask, and the same bits of the weights under it."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.optim.native.parts import (
    DTYPES,
    KINDS,
    PID,
    SEED,
    TERMS,
    Source,
    assert_same_bits,
    needs_compiler,
    specification,
    weights,
)
from tests.optim.small import make, steps
from tests.optim.tiny import lm_closure, small_lm
from zolab.optim import Gaussian, InPlace, Paired, RandomMask, backend, bits, engine, native
from zolab.optim.backend import Limit
from zolab.optim.bits import Places


def few(size: int, share: float) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(size)) < share


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03])
def test_places_are_the_mask(share: float, monkeypatch) -> None:
    monkeypatch.setattr(bits, "PIECE", 2 * bits.TILE)
    for rows, width in ((700, 13), (9, 5000), (4, 2048), (1, 1)):
        mask = few(rows * width, share).view(rows, width)
        places = Places.of(mask)
        assert torch.equal(places.spread(mask.shape), mask)
        for index in (torch.arange(rows), torch.tensor([0, rows - 1]).unique(), torch.arange(0)):
            assert torch.equal(places.rows(index, width), mask[index])
    assert Places.of(few(4096, 0.2)) is None


@needs_compiler
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_under_places(kind: str, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(bits, "FEW", 1.0)  # tiles with many places are right, only slower
    cases = itertools.product((37, 6149, 40_000), (0.0, 0.03, 0.5), (0, 2001))
    for size, share, begin in cases:
        if begin >= size:
            continue
        mask, weight = few(size, share), weights(size, dtype)
        places, part = Places.of(mask), weight[begin:]
        for name in ("walk", "stochastic") if size < 40_000 else ("move",):
            found, expected = weight.clone(), weight.clone()
            native.sweep(kind, found[begin:], PID, TERMS[name], places, offset=begin)
            with specification():
                backend.sweep_(expected, PID, TERMS[name], Source(kind), mask)
            assert_same_bits(found[begin:], expected[begin:])
        both = torch.empty_like(part), torch.empty_like(part)
        native.pair(kind, part, PID, SEED, 1e-3, places, *both, offset=begin)
        with specification():
            wanted = backend.pair(part, PID, SEED, 1e-3, Source(kind), mask[begin:], begin)
        for out, want in zip(both, wanted, strict=True):
            assert_same_bits(out, want)


@needs_compiler
@pytest.mark.usefixtures("_built")
def test_refuses_places_of_another_tensor() -> None:
    weight, places = torch.zeros(4096), Places.of(few(4096, 0.01))
    for options in ({"offset": 1}, {"limit": Limit(1.0, True)}):
        with pytest.raises(ValueError, match="expected places of 4096 elements and no limit"):
            native.sweep("gauss", weight, PID, TERMS["move"], places, **options)


@needs_compiler
@pytest.mark.usefixtures("_built")
@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_training_under_a_mask_that_stays(placement, monkeypatch) -> None:
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)  # as for a large model

    def trained() -> tuple[torch.Tensor, list]:

        model = small_lm()
        mask = RandomMask(0.97)
        options = {"mask": mask, "placement": placement(), "direction": Gaussian("gauss8")}
        optimizer = make(model, **options)
        steps(optimizer, lm_closure(model), 3)
        held = list(optimizer.engine._held.values())
        return torch.cat([p.detach().view(-1) for p in model.parameters()]), held

    found, held = trained()
    assert any(isinstance(one, Places) for one in held)
    with specification():
        expected, held = trained()
    assert not any(isinstance(one, Places) for one in held)
    assert_same_bits(found, expected)
