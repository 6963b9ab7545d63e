"""Statistics over tasks and of paired seeds: by hand, as properties, against other programs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import aggregate, stats
from analysis.targets import parse_target
from zolab.errors import UserError

INF, NAN = math.inf, math.nan


def test_ranks_of_a_4x2_table_with_ties() -> None:
    table = [[0.9, 0.8], [0.5, 0.5], [0.1, 0.7], [0.6, NAN]]
    assert [aggregate.ranks(row).tolist() for row in table] == [[1, 2], [1.5, 1.5], [2, 1], [1, 2]]
    assert aggregate.mean_ranks(table).tolist() == [1.375, 1.625]
    assert aggregate.ranks([3.0, 1.0, 3.0], higher_is_better=False).tolist() == [2.5, 1, 2.5]


def test_profile_of_a_4x2_table_with_misses() -> None:
    costs = [[10, 20], [30, 10], [INF, 40], [INF, INF]]
    # Method 0 is best on task 0 and 3 times the best on task 1; method 1 needs 2, 1 and 1.
    profile = aggregate.performance_profile(costs, [1, 2, 3])
    assert profile.tolist() == [[0.25, 0.25, 0.5], [0.5, 0.75, 0.75]]
    # Reached at once by both, although 0 / 0 is no number.
    assert aggregate.performance_profile([[0.0, 0.0]], [1]).tolist() == [[1.0], [1.0]]


def test_score_profile_weighs_tasks_equally() -> None:
    assert aggregate.score_profile([[0.2, 0.8], [0.9]], [0.5, 0.85]).tolist() == [0.75, 0.5]


def test_probability_of_improvement_by_hand() -> None:
    # Task 0: pairs (1,1) tie, (1,2) lost, (3,1) won, (3,2) won -> 2.5 / 4. Task 1: always won.
    value, low, high = aggregate.probability_of_improvement([[1, 3], [5]], [[1, 2], [4, 4]])
    assert value == pytest.approx((0.625 + 1) / 2)
    assert low <= value <= high <= 1
    assert math.isnan(aggregate.probability_of_improvement([[NAN]], [[1]])[0])
    with pytest.raises(ValueError, match="empty task"):
        aggregate.probability_of_improvement([[]], [[1]])
    with pytest.raises(ValueError, match="same tasks"):
        aggregate.probability_of_improvement([[1]], [[1], [2]])


def test_paired_by_hand() -> None:
    # Differences 1, 2, 3, 2: of 16 sign flips only all plus and all minus are as far from 0.
    result = aggregate.paired([2, 4, 4, 3], [1, 2, 1, 1])
    assert (result.num_pairs, result.wins, result.losses) == (4, 4, 0)
    assert (result.mean, result.p_flip) == (2.0, 2 / 16)
    assert result.sd == pytest.approx(math.sqrt(2 / 3))
    # t = 2 / (sqrt(2/3) / 2) = 4.899 with 3 degrees of freedom.
    assert result.p_t == pytest.approx(0.016277, abs=1e-5)
    tie = aggregate.paired([1, 2], [1, 2])
    assert (tie.wins, tie.losses, tie.p_flip, tie.p_t) == (0, 0, 1.0, 1.0)
    one = aggregate.paired([1], [0])
    assert (one.mean, one.p_flip) == (1.0, 1.0)
    assert math.isnan(one.sd)
    assert math.isnan(one.p_t)
    assert math.isnan(aggregate.paired([NAN, 1], [0, 0]).mean)
    assert aggregate.paired([], []).num_pairs == 0
    with pytest.raises(ValueError, match="shapes"):
        aggregate.paired([1, 2], [1])


def test_speedup_interval_is_censored() -> None:
    sure = stats.speedup([10, 10, 10], [40, 40, 40], 100)
    assert (sure.low, sure.high) == (4.0, 4.0)
    # Two of three missed: every resample with two misses counts as 0, and most have them.
    rare = stats.speedup([10, INF, INF], [40, 40, 40], 100)
    assert (rare.ratio, rare.low, rare.high) == (0.0, 0.0, 4.0)
    some = stats.speedup([10, 20, INF], [40, 40, 40], 100)
    assert (some.ratio, some.low, some.high) == (2.0, 0.0, 4.0)
    # The baseline's misses are its budget, never infinity.
    bound = stats.speedup([10, 10, 10], [INF, INF, INF], 100)
    assert (bound.ratio, bound.lower_bound, bound.low, bound.high) == (10.0, True, 10.0, 10.0)
    assert bound.high_bound
    assert not sure.high_bound
    # The baseline misses once in three: its budget ends the interval, and the true end is above.
    half = stats.speedup([10] * 3, [40, 40, INF], 80)
    assert (half.ratio, half.lower_bound) == (4.0, False)
    assert (half.low, half.high, half.high_bound) == (4.0, 8.0, True)
    # A sample that is censored below a larger ratio may be larger than it.
    mixed = stats.speedup([1, 10, 10], [40, 40, INF], 41)
    assert (mixed.low, mixed.high, mixed.high_bound) == (4.0, 41.0, True)
    assert math.isnan(stats.speedup([10, 10], [40, 40, 40], 100).low)  # two seeds: no interval


def test_targets_by_rule() -> None:
    assert parse_target("final").level(0.5, 0.9) == 0.9
    assert parse_target("fraction:0.5").level(0.5, 0.9) == pytest.approx(0.7)
    assert parse_target("fraction:0.5").level(2.0, 1.0) == 1.5  # a loss falls
    assert parse_target("absolute:0.8").level(0.5, 0.9) == 0.8
    for text in ("best", "fraction:0", "fraction:1.5", "absolute:", "absolute:x", "final:1"):
        with pytest.raises(UserError, match=r"^--target=.*must be one of final, fraction:F"):
            parse_target(text)


# --- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_properties_on_random_tables(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks, methods = rng.integers(1, 6, size=2)
    table = rng.integers(0, 4, size=(tasks, methods)).astype(float)  # few values: many ties
    ranks = aggregate.mean_ranks(table)
    assert ranks.sum() == pytest.approx(methods * (methods + 1) / 2)
    assert aggregate.mean_ranks(table * 3 + 1).tolist() == ranks.tolist()  # only order counts
    costs = np.where(rng.random(table.shape) < 0.3, INF, table + 1)
    profile = aggregate.performance_profile(costs, [1, 2, 3, 1e9])
    assert (np.diff(profile, axis=1) >= 0).all()
    assert profile[:, -1].tolist() == np.isfinite(costs).mean(axis=0).tolist()
    ours = [rng.integers(0, 5, size=rng.integers(1, 5)) for _ in range(tasks)]
    theirs = [rng.integers(0, 5, size=rng.integers(1, 5)) for _ in range(tasks)]
    there = aggregate.probability_of_improvement(ours, theirs)[0]
    back = aggregate.probability_of_improvement(theirs, ours)[0]
    assert there + back == pytest.approx(1.0)
    times = np.where(rng.random(5) < 0.4, INF, rng.integers(1, 9, 5))
    result = stats.speedup(times, rng.integers(1, 9, 4), 9)
    assert (result.reached <= 2) == math.isinf(result.median)  # not reached when k <= n / 2
    assert result.low <= result.high
    pair = aggregate.paired(table[0], table[0][::-1])
    swapped = aggregate.paired(table[0][::-1], table[0])
    assert (pair.p_flip, pair.wins) == (swapped.p_flip, swapped.losses)
    assert 0 < pair.p_flip <= 1


# --- agreement with other programs ---------------------------------------------------------------


def test_ranks_and_paired_tests_agree_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in range(2, 12):
        x = np.round(rng.normal(size=size), 1)
        y = np.round(rng.normal(size=size) + 0.3, 1)
        assert aggregate.ranks(x).tolist() == scipy_stats.rankdata(-x).tolist()
        result = aggregate.paired(x, y)
        assert result.p_t == pytest.approx(scipy_stats.ttest_rel(x, y).pvalue, rel=1e-9)
        if size < 9:
            test = scipy_stats.permutation_test(
                (x - y,), np.mean, permutation_type="samples", n_resamples=np.inf
            )
            assert result.p_flip == pytest.approx(test.pvalue)
    u = scipy_stats.mannwhitneyu([1, 3, 3], [1, 2], method="asymptotic").statistic
    assert aggregate.probability_of_improvement([[1, 3, 3]], [[1, 2]])[0] == pytest.approx(u / 6)


def test_many_pairs_are_sampled_and_agree_with_the_exact_test() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0.4, 1, size=40)
    result = aggregate.paired(x, np.zeros(40))
    assert result.p_flip == pytest.approx(result.p_t, abs=0.01)
    assert result == aggregate.paired(x, np.zeros(40))


def test_aggregates_agree_with_rliable() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    for runs, tasks in ((3, 4), (5, 2), (10, 6)):
        x = np.round(rng.normal(size=(runs, tasks)), 1)
        y = np.round(rng.normal(0.2, 1, size=(runs, tasks)), 1)
        assert float(stats.iqm(x.ravel())) == pytest.approx(metrics.aggregate_iqm(x))
        mine = aggregate.probability_of_improvement(list(x.T), list(y.T))[0]
        assert mine == pytest.approx(metrics.probability_of_improvement(x, y))
