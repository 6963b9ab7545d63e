"""Statistics over several tasks, and of two methods on the same seeds.

All functions are pure and take plain numbers; nothing here knows of runs. Sources: probability of
improvement as in Agarwal et al. 2021 (the mean over tasks of the Mann-Whitney statistic, ties
count half); performance profiles as in Dolan and Moré 2002; the exact sign-flip test is Fisher's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.stats import BOOTSTRAP_SEED, Array, bootstrap_interval

#: Up to this many pairs all sign flips are tried; beyond it a fixed sample of this many.
_EXACT_PAIRS = 14
_FLIPS = 20_000


def ranks(scores: ArrayLike, *, higher_is_better: bool = True) -> Array:
    """Rank of each score, 1 for the best; equal scores share the mean of their places.

    Args:
        scores: shape (n,); a NaN (a method that diverged) ranks last.
        higher_is_better: False for costs.
    """
    array = np.asarray(scores, dtype=np.float64)
    cost = np.where(np.isnan(array), np.inf, -array if higher_is_better else array)
    below = (cost[None, :] < cost[:, None]).sum(axis=1)
    equal = (cost[None, :] == cost[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


def mean_ranks(scores: ArrayLike, *, higher_is_better: bool = True) -> Array:
    """Mean rank of each method over tasks.

    Args:
        scores: shape (num_tasks, num_methods).
        higher_is_better: False for costs.
    """
    table = np.asarray(scores, dtype=np.float64)
    return np.mean([ranks(row, higher_is_better=higher_is_better) for row in table], axis=0)


def performance_profile(costs: ArrayLike, factors: ArrayLike) -> Array:
    """Share of tasks on which each method's cost is within a factor of the best method's.

    Args:
        costs: shape (num_tasks, num_methods): cost to reach a target, infinity for a miss.
        factors: shape (num_factors,), each >= 1.

    Returns:
        Shape (num_methods, num_factors). A task that nobody solved counts as solved by nobody.
    """
    table = np.asarray(costs, dtype=np.float64)
    best = table.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(np.isfinite(table), table / best, np.inf)
    ratio = np.where(np.isfinite(table) & (table == best), 1.0, ratio)  # 0 / 0: reached at once
    within = ratio[:, :, None] <= np.asarray(factors, dtype=np.float64)[None, None, :]
    return within.mean(axis=0)


def score_profile(tasks: Sequence[ArrayLike], levels: ArrayLike) -> Array:
    """Share of runs with a score above each level, tasks weighted equally.

    Args:
        tasks: one array of scores per task, shape (num_runs_of_the_task,).
        levels: shape (num_levels,).

    Returns:
        Shape (num_levels,).
    """
    grid = np.asarray(levels, dtype=np.float64)
    shares = [(np.asarray(task)[:, None] > grid[None, :]).mean(axis=0) for task in tasks]
    return np.mean(shares, axis=0)


def probability_of_improvement(
    ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike]
) -> tuple[float, float, float]:
    """Chance that a run of one method beats a run of another on a task picked at random.

    Args:
        ours: one array of scores per task, shape (num_runs,), higher is better.
        theirs: the other method's, for the same tasks.

    Returns:
        (probability, low, high), the last two a bootstrap interval with runs resampled within
        task and method; NaN when any score is not finite.

    Raises:
        ValueError: no task, or a task without runs.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError("probability of improvement needs the same tasks on both sides")
    mine = [np.asarray(task, dtype=np.float64) for task in ours]
    other = [np.asarray(task, dtype=np.float64) for task in theirs]
    if any(task.size == 0 for task in (*mine, *other)):
        raise ValueError("probability of improvement of an empty task")
    if not all(np.isfinite(task).all() for task in (*mine, *other)):
        return float("nan"), float("nan"), float("nan")
    value = float(np.mean([_wins(x, y) for x, y in zip(mine, other, strict=True)]))
    count = len(mine)
    low, high = bootstrap_interval(
        [*mine, *other],
        lambda s: np.mean([_wins(x, y) for x, y in zip(s[:count], s[count:], strict=True)], axis=0),
        draws=2000,
    )
    return value, low, high


def _wins(x: Array, y: Array) -> Array:
    """Share of pairs in which x is above y, ties half; the last axis holds the runs."""
    above = x[..., :, None] > y[..., None, :]
    equal = x[..., :, None] == y[..., None, :]
    return np.asarray((above + 0.5 * equal).mean(axis=(-2, -1)))


@dataclass(frozen=True)
class Paired:
    """Two methods on the same seeds.

    Attributes:
        num_pairs: seeds that both have.
        mean: mean of (ours - theirs).
        sd: standard deviation of the differences; NaN for one pair.
        wins: pairs in which ours is above.
        losses: pairs in which it is below; the rest are ties.
        p_flip: two-sided p of the sign-flip test on the mean, exact up to 14 pairs.
        p_t: two-sided p of Student's paired t-test; NaN for one pair.
    """

    num_pairs: int
    mean: float
    sd: float
    wins: int
    losses: int
    p_flip: float
    p_t: float


def paired(ours: ArrayLike, theirs: ArrayLike) -> Paired:
    """Compare two methods seed by seed.

    Args:
        ours: shape (n,): one score per seed.
        theirs: shape (n,): of the same seeds in the same order.

    Raises:
        ValueError: unequal lengths.
    """
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"paired scores of shapes {x.shape} and {y.shape}")
    difference = x - y
    n, nan = difference.size, float("nan")
    if n == 0 or not np.isfinite(difference).all():
        return Paired(n, nan, nan, 0, 0, nan, nan)
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1)) if n > 1 else nan
    return Paired(
        n,
        mean,
        spread,
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        _p_flip(difference),
        _p_t(mean, spread, n),
    )


def _p_flip(difference: Array) -> float:
    """Share of sign flips whose mean is at least as far from 0."""
    n = difference.size
    if n <= _EXACT_PAIRS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        extra = 0
    else:
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        signs = rng.choice((1.0, -1.0), size=(_FLIPS, n))
        extra = 1  # what was seen is itself one of the flips
    sums = np.abs(signs @ difference)
    seen = abs(float(difference.sum()))
    slack = 1e-9 * max(seen, float(np.abs(difference).sum()))
    return float((np.count_nonzero(sums >= seen - slack) + extra) / (len(signs) + extra))


def _p_t(mean: float, sd: float, n: int) -> float:
    if n < 2:
        return float("nan")
    if sd == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 2.0 * _t_tail(abs(mean) / (sd / math.sqrt(n)), n - 1)


def _t_tail(t: float, df: int) -> float:
    """P(T > t) for t >= 0 and whole degrees of freedom.

    Source: the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(df))
    cos, sin = math.cos(theta), math.sin(theta)
    total, term = 0.0, 1.0
    if df % 2 == 0:
        for k in range(1, df // 2 + 1):
            total += term
            term *= (2 * k - 1) / (2 * k) * cos * cos
        inside = sin * total
    else:
        term = cos
        for k in range(1, (df - 1) // 2 + 1):
            total += term
            term *= 2 * k / (2 * k + 1) * cos * cos
        inside = 2 / math.pi * (theta + sin * total)
    return max(0.0, (1.0 - inside) / 2)
