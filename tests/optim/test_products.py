"""Products of thin factors: exact before their one rounding, so that all who make them agree."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tests.optim.native.parts import DTYPES, TERMS, assert_same_bits, needs_compiler, specification
from zolab.optim import LazyLowRank, Subspace
from zolab.optim.backend import Term, apply_term_
from zolab.optim.native import jobs
from zolab.optim.products import bound_of, product, snap_, sweep_

CPU = torch.device("cpu")


def factors(m: int, n: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=drawn) for shape in ((m, rank), (rank, n)))
    left[1:2], right[:, 1:2] = 0.0, -0.0  # sums of zeros of either sign
    return snap_(left, rank, 8.0), snap_(right, rank, 8.0)


@pytest.mark.parametrize("rank", [1, 2, 3, 48, 300])
def test_an_element_is_the_sum_of_its_products_rounded_once(rank: int) -> None:
    left, right = factors(5, 7, rank)
    found = product(left, right)
    for i in range(5):
        for j in range(7):
            pairs = zip(left[i].tolist(), right[:, j].tolist(), strict=True)
            total = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
            assert float(total) == total, "a sum has its place in float64"
            assert found[i, j].item() == torch.tensor(float(total)).float().item()
    assert not torch.signbit(found[1]).any()
    turned = torch.randperm(rank, generator=torch.Generator().manual_seed(1))
    assert_same_bits(product(left[:, turned].contiguous(), right[turned].contiguous()), found)


def test_a_snapped_number_is_a_multiple_of_a_unit_and_hardly_moved() -> None:
    drawn = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    for rank, behind in ((1, 23), (2, 23), (3, 22), (48, 20)):
        found = snap_(drawn.clone(), rank, 8.0)
        assert torch.equal(found.double() * 2**behind, (found.double() * 2**behind).round())
        assert (found - drawn).abs().max() <= 2.0 ** -(behind + 1)
    scaled = snap_(drawn.clone(), 48, 128.0, 12.3)
    assert (scaled - drawn * 12.3).abs().max() <= 2.0**-16


def test_the_bound_of_a_factor_is_the_next_power_of_two() -> None:
    for largest, bound in ((3.0, 4.0), (4.0, 8.0), (1e-12, 2.0**-39), (0.0, 2.0**-89)):
        assert bound_of(torch.tensor([[-largest, largest / 2]])).item() == bound


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "rank"), [(1, 1, 1), (9, 37, 2), (21, 1041, 3), (70, 64, 48)])
def test_native_sweeps_are_those_of_plain_torch(dtype, m: int, n: int, rank: int) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(n)).mul_(0.02).to(dtype)
    weight.view(-1)[::7] = -0.0
    for terms in TERMS.values():
        both = {term.seed: factors(m, n, rank, term.seed % 97) for term in terms}
        found, expected = weight.clone(), weight.clone()
        sweep_(found, 3, terms, both)
        with specification():
            sweep_(expected, 3, terms, both)
        assert_same_bits(found, expected)
    left, right = factors(m, n, rank)
    with specification():
        expected = product(left, right)
    assert_same_bits(product(left, right), expected)


@needs_compiler
def test_threads_change_no_bit() -> None:
    m, n, before = 777, 500, torch.get_num_threads()
    assert m * n > jobs.PARALLEL_FROM
    both, found = {5: factors(m, n, 2)}, []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weight = torch.linspace(-1, 1, m * n)
            sweep_(weight, 3, [Term(1e-3, 5), Term(-1e-4, 5, 0.99)], both)
            found.append((weight, product(*both[5])))
    finally:
        torch.set_num_threads(before)
    for weight, z in found[1:]:
        assert_same_bits(weight, found[0][0])
        assert_same_bits(z, found[0][1])


@pytest.mark.parametrize("kind", [LazyLowRank, Subspace])
@pytest.mark.parametrize("plain", [False, True])
def test_a_sweep_moves_along_z(kind, plain: bool, monkeypatch) -> None:
    """z in pieces, its rows and its factors are one and the same product."""
    from tests.optim.test_low_rank import prepared

    if plain:
        monkeypatch.setenv("ZOLAB_NATIVE", "0")
        monkeypatch.setattr("zolab.optim.products.PIECE", 100)
    direction = prepared(kind(3, 4), (50, 41))
    direction.begin(1, [9])
    whole = direction.z(0, 9, 0, 2050, CPU)
    left, right = direction.factors(0, 9, CPU)
    assert_same_bits(product(left, right.T).view(-1), whole)
    assert_same_bits(
        torch.cat([direction.z(0, 9, i, 205, CPU) for i in range(0, 2050, 205)]), whole
    )
    rows = torch.tensor([49, 0, 7])
    assert_same_bits(direction.rows(0, 9, rows, 41), whole.view(50, 41)[rows])
    weight = torch.linspace(-1, 1, 2050).view(50, 41)
    expected = weight.clone().view(-1)
    assert direction.sweep(weight, 0, [Term(1e-2, 9)])
    apply_term_(expected, whole, Term(1e-2, 9), 0, 0, None)
    assert_same_bits(weight.view(-1), expected)
