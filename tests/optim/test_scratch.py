"""What keeps scratch small gives the same numbers as the plain way: thresholds, masks, pieces."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zolab.optim import MeZO, Paired, PerLayer
from zolab.optim import backend as backend_module
from zolab.optim import bits as bits_module
from zolab.optim import masks as masks_module
from zolab.optim.backend import Limit
from zolab.optim.bits import pack_bits, unpack_bits
from zolab.optim.masks import _kth_magnitude
from zolab.optim.noise import root_mean_square
from zolab.optim.placements import modulewise

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(backend_module, "PIECE", 64)
    monkeypatch.setattr(masks_module, "PIECE", 64)
    monkeypatch.setattr(bits_module, "PIECE", 64)


def weights(dtype: torch.dtype, count: int) -> torch.Tensor:
    """Normal numbers of both signs, some of them zero and some alike."""
    out = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    out[::7] = 0.0
    out[3::11] = -0.25
    return (out * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 63, 64, 1000])
def test_kth_magnitude_is_that_of_a_sort(dtype, count):
    w = weights(dtype, count)
    ordered = w.abs().double().sort().values
    for k in {1, (count + 1) // 2, count}:
        assert _kth_magnitude([w], k) == float(ordered[k - 1])
        assert _kth_magnitude([w[: count // 3], w[count // 3 :]], k) == float(ordered[k - 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_in_pieces_are_the_whole_masks(dtype):
    w = weights(dtype, 1003).view(17, 59)
    h = _kth_magnitude([w], 250)
    assert torch.equal(Limit(h, True).of(w), w.abs() <= h)
    assert torch.equal(Limit(h, False).of(w), w.abs() >= h)
    keep = w.abs() <= h
    packed = pack_bits(keep)
    assert packed.numel() == 126
    assert torch.equal(unpack_bits(packed, keep.shape), keep)


@pytest.mark.parametrize("dtype", DTYPES)
def test_root_mean_square(dtype):
    w = weights(dtype, 3000)
    assert root_mean_square(w) == pytest.approx(float(w.double().square().mean().sqrt()), rel=1e-6)
    assert root_mean_square(w[:0]) == 0.0


@pytest.mark.parametrize("placement", [PerLayer, Paired])
def test_a_big_linear_in_pieces_gives_the_losses_of_the_whole_one(placement, monkeypatch):
    losses = []
    for piece in (1 << 22, 100):
        monkeypatch.setattr(modulewise, "CHUNK_ELEMENTS", piece)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 1, bias=False)).double()
        x = torch.randn(6, 12, dtype=torch.float64)

        def closure(copies: int, model=model, x=x) -> list[float]:
            out = model(x.repeat(copies, 1)).square().view(copies, -1)
            return out.mean(1).tolist()

        optimizer = MeZO(model.named_parameters(), lr=1e-3, placement=placement(), model=model)
        losses.append([optimizer.step(closure) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
