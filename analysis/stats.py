"""Small statistics over seeds, on plain numpy arrays.

All functions are pure. Percentages are never formed here: an accuracy of 0.8 stays 0.8.
Sources: IQM and stratified bootstrap as in Agarwal et al. 2021 ("Deep RL at the edge of the
statistical precipice"); misses as infinite time and medians of them as in AlgoPerf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]

#: Seed, number of resamples and coverage of every printed interval.
BOOTSTRAP_SEED = 20230527
BOOTSTRAP_DRAWS = 10_000
CONFIDENCE = 0.95
#: Below this many seeds no interval is printed: it would only repeat the two values.
MIN_SEEDS_FOR_INTERVAL = 3


def mean(values: ArrayLike) -> float:
    """Mean of `values` (shape (n,)); NaN when empty or when any value is NaN."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else float("nan")


def sd(values: ArrayLike) -> float:
    """Sample standard deviation (n - 1 in the denominator); NaN for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) if array.size > 1 else float("nan")


def iqm(values: ArrayLike, axis: int = -1) -> Array:
    """Interquartile mean: the mean after cutting a quarter of the values at each end.

    floor(n / 4) values are cut at each end, as `scipy.stats.trim_mean(x, 0.25)` does.

    Args:
        values: numbers; at least one along `axis`.
        axis: the axis to reduce.

    Returns:
        An array without that axis (0-d for a vector).

    Raises:
        ValueError: nothing to average.
    """
    array = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    size = array.shape[axis]
    if size == 0:
        raise ValueError("iqm of no values")
    cut = size // 4
    return np.asarray(np.take(array, np.arange(cut, size - cut), axis=axis).mean(axis=axis))


def bootstrap_interval(
    strata: Sequence[ArrayLike],
    statistic: Statistic,
    *,
    confidence: float = CONFIDENCE,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float]:
    """Percentile interval by a stratified bootstrap with a fixed seed.

    Args:
        strata: samples that are resampled independently of each other, each of shape (n_i,): one
            method's seeds, two methods' seeds, or one sample per task.
        statistic: from the resampled strata, each of shape (draws, n_i), to shape (draws,).
        confidence: coverage, e.g. 0.95.
        draws: number of resamples.
        seed: seed of the resampling; the same input always gives the same interval.

    Returns:
        (low, high); both NaN if any value is not finite.

    Raises:
        ValueError: an empty stratum.
    """
    arrays = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("bootstrap of an empty sample")
    if not all(np.isfinite(array).all() for array in arrays):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    resampled = [array[rng.integers(0, array.size, (draws, array.size))] for array in arrays]
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(statistic(resampled), [tail, 1.0 - tail])
    return float(low), float(high)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """Bootstrap interval of the mean over seeds; (NaN, NaN) below `MIN_SEEDS_FOR_INTERVAL`."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < MIN_SEEDS_FOR_INTERVAL:
        return float("nan"), float("nan")
    return bootstrap_interval([array], lambda s: s[0].mean(axis=-1))


def difference_interval(values: ArrayLike, reference: ArrayLike) -> tuple[float, float]:
    """Bootstrap interval of mean(values) - mean(reference), both sides resampled on their own.

    (NaN, NaN) when `values` has fewer than `MIN_SEEDS_FOR_INTERVAL` entries. A reference with one
    entry counts as exact.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < MIN_SEEDS_FOR_INTERVAL:
        return float("nan"), float("nan")
    return bootstrap_interval([array, reference], lambda s: s[0].mean(axis=-1) - s[1].mean(axis=-1))


def iqm_interval(tasks: Sequence[ArrayLike]) -> tuple[float, float]:
    """Bootstrap interval of the IQM over runs and tasks, runs resampled within their task.

    Args:
        tasks: one array of scores per task, each of shape (num_runs_of_the_task,).
    """
    return bootstrap_interval(tasks, lambda s: iqm(np.concatenate(s, axis=-1)))


def time_to_target(
    cost: ArrayLike, values: ArrayLike, target: float, *, higher_is_better: bool = True
) -> float:
    """Cost at the first evaluation that reaches `target`; infinity when none does.

    A value counts as reaching the target when it is within 1e-9 (relative above 1) of it: the mean
    of three equal accuracies can come out one rounding above each of them.

    Args:
        cost: shape (n,), non-decreasing: steps, forwards or seconds at each evaluation.
        values: shape (n,); a NaN never reaches the target.
        target: the level.
        higher_is_better: False for a loss.
    """
    level = np.asarray(values, dtype=np.float64)
    slack = 1e-9 * max(1.0, abs(target))
    reached = level >= target - slack if higher_is_better else level <= target + slack
    hits = np.flatnonzero(reached)
    return float(np.asarray(cost, dtype=np.float64)[hits[0]]) if hits.size else float("inf")


def median_with_misses(times: ArrayLike) -> float:
    """Median of times in which a miss is infinity; infinity when half or more are misses.

    NaN for no times at all.
    """
    ordered = np.sort(np.asarray(times, dtype=np.float64))
    if ordered.size == 0:
        return float("nan")
    low, high = ordered[(ordered.size - 1) // 2], ordered[ordered.size // 2]
    return float("inf") if np.isinf(high) else float((low + high) / 2)


@dataclass(frozen=True)
class Speedup:
    """How much sooner a method reaches a level than the baseline.

    Attributes:
        reached: runs of the method that reached the level.
        num_runs: runs of the method.
        median: median time of the method; infinity when half or more of its runs missed.
        ratio: baseline median / method median; 0 when only the method missed, NaN when undefined.
        lower_bound: the baseline itself missed, so its whole budget stands for its median, and the
            true ratio is at least `ratio`.
        low: lower end of the bootstrap interval of `ratio` over seeds; 0 when it includes a miss
            of the method, NaN with fewer than `MIN_SEEDS_FOR_INTERVAL` runs on either side.
        high: upper end.
        high_bound: at the upper end the baseline missed in the resamples, with its budget in place
            of its median: the true end is at least `high`.
    """

    reached: int
    num_runs: int
    median: float
    ratio: float
    lower_bound: bool = False
    low: float = float("nan")
    high: float = float("nan")
    high_bound: bool = False


def speedup(times: ArrayLike, baseline_times: ArrayLike, baseline_budget: float) -> Speedup:
    """Median speedup over the baseline, with misses kept as misses.

    Args:
        times: shape (num_runs,), infinity for a miss.
        baseline_times: the same of the baseline.
        baseline_budget: what a baseline run spends in all, in the same unit; used only when half
            or more of the baseline's own runs missed the level.
    """
    array = np.asarray(times, dtype=np.float64)
    own, other = median_with_misses(array), median_with_misses(baseline_times)
    lower_bound = bool(np.isinf(other))
    numerator = baseline_budget if lower_bound else other
    if np.isinf(own):
        ratio = float("nan") if lower_bound else 0.0
    elif own == 0.0:
        ratio = float("nan") if numerator == 0.0 else float("inf")
    else:
        ratio = numerator / own
    interval = _speedup_interval(array, np.asarray(baseline_times), baseline_budget)
    return Speedup(int(np.isfinite(array).sum()), array.size, own, ratio, lower_bound, *interval)


def _speedup_interval(times: Array, baseline: Array, budget: float) -> tuple[float, float, bool]:
    """Bootstrap interval of the ratio of medians; both methods' seeds are resampled.

    A resample in which half or more of the method's runs missed counts as 0 whatever the baseline
    did. One in which the baseline's did has the whole budget in place of its median, which bounds
    its ratio from below: such samples lie above all others when the upper end is sought. Ends are
    order statistics: nothing is interpolated between a number and infinity.

    Returns:
        (low, high, whether the true upper end may lie above `high`).
    """
    if min(times.size, baseline.size) < MIN_SEEDS_FOR_INTERVAL:
        return float("nan"), float("nan"), False
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    own, other = (
        _medians(array[rng.integers(0, array.size, (BOOTSTRAP_DRAWS, array.size))])
        for array in (times, baseline)
    )
    censored = np.isinf(other) & np.isfinite(own)
    other = np.where(np.isinf(other), budget, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.isinf(own), 0.0, other / own)
    ratio = np.where((own == 0.0) & (other == 0.0), 1.0, ratio)
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(ratio, [tail, 1.0 - tail], method="inverted_cdf")
    above = np.quantile(np.where(censored, np.inf, ratio), 1.0 - tail, method="inverted_cdf")
    if np.isinf(above):
        return float(low), float(high), bool(np.isfinite(high))
    return float(low), float(above), False


def _medians(samples: Array) -> Array:
    """`median_with_misses` of each row."""
    ordered = np.sort(samples, axis=1)
    size = ordered.shape[1]
    return (ordered[:, (size - 1) // 2] + ordered[:, size // 2]) / 2
