"""Noise is a pure function of (seed, parameter id, element), with the moments it claims."""

from __future__ import annotations

import hashlib

import pytest
import torch

from zolab.optim.directions import Gaussian, Kept, Rademacher
from zolab.optim.keys import permutation, probe_seed
from zolab.optim.noise import NOISES, gauss8_table, make_noise
from zolab.optim.philox import words
from zolab.optim.rounding import stochastic_round

KINDS = sorted(NOISES)


def draw(kind: str, count: int, seed: int = 7, pid: int = 3, offset: int = 0) -> torch.Tensor:
    out = torch.empty(count)
    make_noise(kind).fill(out, seed, pid, offset)
    return out


def test_golden_words() -> None:
    # Known answer of Random123 for key 0, counter 0, and for all ones.
    assert [f"{w:08x}" for w in words(0, 4, 0, 0, 0).tolist()] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8",
    ]  # fmt: skip
    ones = (1 << 32) - 1
    from zolab.optim.philox import philox

    block = torch.tensor([-1], dtype=torch.int64)  # 64 set bits
    block_words = philox(block, (1 << 64) - 1, ones, ones)
    # c1 = block >> 32 is an arithmetic shift: -1 keeps all ones, as the counter wants.
    assert [f"{int(w):08x}" for w in block_words] == [
        "408f276d", "41c83b0e", "a20bc7c6", "6d5451fd",
    ]  # fmt: skip


#: sha256 of the first 4,097 float32 elements; a change of any bit is a new `NUMERICS`.
GOLDEN_Z = {
    "gauss": "9447c5b8632728f6",
    "gauss8": "2dc7d18d80ee6f05",
    "rademacher": "0a5e24b64967147c",
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_z(kind: str) -> None:
    z = draw(kind, 4097, seed=0x0123456789ABCDEF, pid=42)
    assert hashlib.sha256(z.numpy().tobytes()).hexdigest()[:16] == GOLDEN_Z[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_start_anywhere(kind: str) -> None:
    whole = draw(kind, 300_001)
    for offset, count in ((0, 1), (1, 17), (127, 129), (262_143, 5), (300_000, 1)):
        assert torch.equal(draw(kind, count, offset=offset), whole[offset : offset + count])
    index = torch.tensor([5, 0, 77, 5])
    rows = make_noise(kind).rows(index, 33, 7, 3)
    assert torch.equal(rows, whole[: 33 * 100].view(100, 33)[index])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_matter(kind: str) -> None:
    before = torch.get_num_threads()
    one = draw(kind, 200_003)
    torch.set_num_threads(2)
    two = draw(kind, 200_003)
    torch.set_num_threads(before)
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_at_any_place(kind: str, monkeypatch) -> None:
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    whole = draw(kind, 1024)
    for skip in (1, 2):
        room = torch.zeros(1024 + skip)
        make_noise(kind).fill(room[skip:], 7, 3)
        assert torch.equal(room[skip:], whole)
        assert not room[:skip].any()


@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind: str) -> None:
    n = 1 << 20
    z = draw(kind, n).double()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / n) ** 0.5
    for other in (draw(kind, n, seed=8), draw(kind, n, pid=4), draw(kind, n, offset=1)):
        assert abs((z * other).mean()) < 4.5 / n**0.5


def test_gauss_is_normal() -> None:
    from scipy import stats

    assert stats.kstest(draw("gauss", 200_000).numpy(), "norm").pvalue > 0.001


def test_gauss8_table() -> None:
    table = gauss8_table().double()
    assert table.mean() == 0
    assert table.square().mean() == pytest.approx(1, abs=1e-6)
    assert torch.equal(table, -table.flip(0))


@pytest.mark.parametrize("direction", [Gaussian(), Gaussian("gauss8"), Rademacher()])
def test_kept_equals_fresh(direction) -> None:
    sizes = {3: 1000, 9: 7, 2: 129}
    kept = Kept(direction, sizes)
    device = torch.device("cpu")
    for seed in (1, 2, 3, 1):
        for pid, size in sizes.items():
            fresh = direction.z(pid, seed, 0, size, device)
            assert torch.equal(kept.z(pid, seed, 0, size, device), fresh)


def test_probe_seeds_differ() -> None:
    seeds = {probe_seed(s, t, p) for s in (0, 1, 2**63) for t in range(50) for p in range(4)}
    assert len(seeds) == 3 * 50 * 4
    with pytest.raises(ValueError, match="seed = -1"):
        probe_seed(-1, 0, 0)


def test_permutation_is_keyed() -> None:
    first = permutation(3, 0, 1000)
    assert torch.equal(first, permutation(3, 0, 1000))
    assert sorted(first.tolist()) == list(range(1000))
    assert not torch.equal(first, permutation(3, 1, 1000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype) -> None:
    n = 200_000
    # Between two neighbours, a quarter of the way up; normal and subnormal range of fp16.
    for low in (torch.tensor(0.02), torch.tensor(3e-6), torch.tensor(-1.7)):
        low = low.to(dtype)
        high = torch.nextafter(low.float(), torch.tensor(9.0)).to(dtype)
        step = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(low.float().abs()))
        if dtype == torch.float16:
            step = torch.clamp(step, min=2.0**-24)
        high = (low.float() + step).to(dtype)
        value = (low.float() + 0.25 * (high.float() - low.float())).repeat(n)
        got = stochastic_round(value, dtype, seed=5, pid=1)
        assert set(got.unique().tolist()) <= {low.item(), high.item()}
        share = (got == high).double().mean().item()
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5
        exact = low.repeat(100)
        assert torch.equal(stochastic_round(exact.float(), dtype, 5, 1), exact)
