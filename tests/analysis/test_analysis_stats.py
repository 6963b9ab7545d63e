"""Each statistic on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import stats


def test_mean_and_sd_of_a_4x2_table() -> None:
    table = [[1.0, 3.0], [2.0, 2.0], [0.0, 1.0], [5.0, 5.0]]
    assert [stats.mean(row) for row in table] == [2.0, 2.0, 0.5, 5.0]
    # sd of (1, 3): deviations 1 and 1, sum of squares 2, divided by n - 1 = 1.
    assert [stats.sd(row) for row in table] == pytest.approx([math.sqrt(2), 0, math.sqrt(0.5), 0])


def test_one_seed_has_a_mean_and_no_spread() -> None:
    assert stats.mean([0.7]) == 0.7
    assert math.isnan(stats.sd([0.7]))
    assert all(math.isnan(end) for end in stats.mean_interval([0.7, 0.8]))


def test_nan_is_not_hidden() -> None:
    assert math.isnan(stats.mean([0.7, float("nan")]))
    assert math.isnan(stats.mean([]))
    assert math.isnan(stats.mean_interval([0.1, 0.2, float("nan")])[0])


def test_iqm_cuts_a_quarter_at_each_end() -> None:
    assert float(stats.iqm([100.0, 1.0, 2.0, -50.0])) == 1.5
    assert float(stats.iqm([0, 1, 2, 3, 4, 5, 6, 700])) == 3.5
    assert float(stats.iqm([1.0, 2.0, 9.0])) == 4.0  # floor(3 / 4) = 0: nothing is cut
    assert stats.iqm([[0, 1, 2, 9], [5, 5, 5, 5]]).tolist() == [1.5, 5.0]
    with pytest.raises(ValueError, match="no values"):
        stats.iqm([])


def test_iqm_agrees_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in range(1, 40):
        values = rng.normal(size=size)
        assert float(stats.iqm(values)) == pytest.approx(scipy_stats.trim_mean(values, 0.25))


def test_bootstrap_is_fixed_and_inside_the_data() -> None:
    values = [0.80, 0.81, 0.85]
    low, high = stats.mean_interval(values)
    assert (low, high) == stats.mean_interval(values)
    # Three seeds: the extreme resamples (all the same value) have probability 1/27 > 2.5 %.
    assert (low, high) == pytest.approx((0.80, 0.85))
    assert stats.mean_interval([0.5] * 5) == (0.5, 0.5)


def test_strata_are_resampled_apart() -> None:
    # Within each stratum all values are equal, so any mixing of the two would show as a width.
    low, high = stats.difference_interval([0.9, 0.9, 0.9], [0.4, 0.4])
    assert (low, high) == pytest.approx((0.5, 0.5))
    assert stats.iqm_interval([[0.2, 0.2], [0.6, 0.6]]) == pytest.approx((0.4, 0.4))
    with pytest.raises(ValueError, match="empty"):
        stats.difference_interval([1.0, 2.0, 3.0], [])


def test_bootstrap_of_many_seeds_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = stats.mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_time_to_target() -> None:
    steps, accuracy = [0, 10, 20, 30], [0.5, 0.8, float("nan"), 0.9]
    assert stats.time_to_target(steps, accuracy, 0.8) == 10  # a tie counts as reached
    assert stats.time_to_target(steps, accuracy, 0.81) == 30
    assert stats.time_to_target(steps, accuracy, 0.95) == math.inf
    assert stats.time_to_target(steps, [1, 0.5, 0.2, 0.1], 0.2, higher_is_better=False) == 20
    assert stats.time_to_target([], [], 0.5) == math.inf


def test_rounding_of_a_mean_is_no_miss() -> None:
    target = stats.mean([0.8, 0.8, 0.8])
    assert target > 0.8
    assert stats.time_to_target([0, 1], [0.1, 0.8], target) == 1


def test_median_keeps_misses() -> None:
    assert stats.median_with_misses([30, 10, math.inf]) == 30
    assert stats.median_with_misses([10, 20, 30, math.inf]) == 25
    assert stats.median_with_misses([10, math.inf]) == math.inf  # half missed
    assert stats.median_with_misses([10, math.inf, math.inf]) == math.inf
    assert math.isnan(stats.median_with_misses([]))


def test_speedup_by_hand() -> None:
    result = stats.speedup([10, 20, math.inf], [40, 60], baseline_budget=100)
    assert (result.reached, result.num_runs, result.median, result.ratio) == (2, 3, 20, 2.5)
    missed = stats.speedup([10, math.inf], [40, 60], baseline_budget=100)
    assert (missed.reached, missed.median, missed.ratio) == (1, math.inf, 0.0)
    bound = stats.speedup([25], [80, math.inf], baseline_budget=100)
    assert (bound.ratio, bound.lower_bound) == (4.0, True)
    assert stats.speedup([0, 0], [40], 100).ratio == math.inf
    assert math.isnan(stats.speedup([math.inf], [math.inf], 100).ratio)
