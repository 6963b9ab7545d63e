"""Whether a zeroth-order run can work at all, from what it logs.

Pure functions over logged numbers and standard library only: the run itself says the warnings in
its first minutes, and reports compute the same from the same columns. Thresholds are ours.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

#: Rows with a training loss below which nothing is said.
MIN_ROWS = 8
#: Relative spacing of the stored formats: 2^-(bits of the mantissa).
SPACING = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}

_ZERO_SHARE = 0.05
_SIGNAL_STEPS = 16.0  # steps of the loss's own float32 grid
_LOCAL = 0.5  # |L+ - L-| beyond half the loss is no finite difference any more
_MOVED = 0.02
_STEP = 0.1  # rounding steps: even five standard deviations of z are rounded away
_FAR = 3.0  # standard errors that count as a change


@dataclass(frozen=True)
class Health:
    """What the logs say about a run so far; None where they do not.

    Attributes:
        num_rows: rows with a training loss.
        zero_share: share of coefficients that were exactly 0 (of steps, in logs without that).
        signal: median of |L+ - L-|, nats.
        loss_noise: spread of the training loss from batch to batch, nats: the standard deviation
            of differences of consecutive rows over the square root of 2.
        signal_to_noise: signal / loss_noise.
        signal_steps: signal in steps of the float32 grid at the size of the loss.
        eps_rounding: eps over the spacing of the stored weights at their root mean square: how
            many grid steps a typical perturbation moves a typical weight.
        step_rounding: the same for a step: lr times the coefficient over that spacing; None for
            16-bit weights, whose updates are rounded stochastically.
        moved_share: share of weights whose stored value is not the one the run began with.
        change: mean training loss of the last third of the rows minus that of the first, nats.
        change_error: standard error of `change` from the batch noise, nats.
        diverged: the loss is not finite, or has clearly risen.
        lr: "down", "up" or "" for the direction that the signs point to.
        eps: the same for eps.
        warnings: one sentence per finding, empty for a healthy run.
        signs: a short name for each of them.
    """

    num_rows: int
    zero_share: float | None = None
    signal: float | None = None
    loss_noise: float | None = None
    signal_to_noise: float | None = None
    signal_steps: float | None = None
    eps_rounding: float | None = None
    step_rounding: float | None = None
    moved_share: float | None = None
    change: float | None = None
    change_error: float | None = None
    diverged: bool = False
    lr: str = ""
    eps: str = ""
    warnings: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()


def assess(
    columns: Mapping[str, Sequence[float | None]], *, eps: float | None, dtype: str = "float32"
) -> Health:
    """Judge a run from its logged columns.

    Args:
        columns: key to one entry per row, in order of steps, None where a row lacks the key:
            any of `COLUMNS`.
        eps: perturbation scale, None when unknown.
        dtype: format in which the weights are stored.
    """
    losses = [float(v) for v in columns.get("train/loss", ()) if v is not None]
    if not losses:
        return Health(0)
    finite = [v for v in losses if math.isfinite(v)]
    pairs = zip(columns.get("train/loss_plus", ()), columns.get("train/loss_minus", ()))  # noqa: B905
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    signal = statistics.median(gaps) if gaps else None
    noise = _noise(finite)
    level = statistics.median(finite) if finite else None
    rms = _last(columns, "model/weight_rms")
    # Of the first row, before any step, nothing has moved yet and nothing follows from it.
    moved = _last({"later": columns.get("zo/moved_share", ())[1:]}, "later")
    change, error = _change(finite, noise)
    worse = _dev_rise(columns, noise)
    not_finite = not math.isfinite(losses[-1]) or not finite
    risen = change is not None and error is not None and change > max(_FAR * error, 0.05)
    found = Health(
        num_rows=len(losses),
        zero_share=_first_of(
            _last(columns, "zo/zero_coefficient_share"), _last(columns, "zo/zero_share")
        ),
        signal=signal,
        loss_noise=noise,
        signal_to_noise=_ratio(signal, noise),
        signal_steps=_ratio(signal, level and abs(level) * SPACING["float32"]),
        eps_rounding=_ratio(eps, rms and rms * SPACING.get(dtype, SPACING["float32"])),
        step_rounding=_step_rounding(columns, rms, dtype),
        moved_share=moved,
        change=change,
        change_error=error,
        diverged=not_finite or risen or worse,
    )
    if found.num_rows < MIN_ROWS and not not_finite:
        return found
    dev = [float(v) for v in columns.get("dev/loss", ()) if v is not None]
    fallen = len(dev) > 1 and min(dev[1:]) < 0.98 * dev[0]
    return _judged(found, level, _last(columns, "zo/nonfinite_total") or 0.0, fallen)


def _judged(found: Health, level: float | None, nonfinite: float, fallen: bool) -> Health:
    """The same with its warnings and directions; `fallen`: the dev loss is below its start."""
    said: dict[str, str] = {}
    lr = eps = ""
    if found.diverged:
        said["diverged"] = (
            "the loss has risen or is not finite: it diverges; try a lower optimizer.lr"
        )
        lr = "down"
    elif nonfinite:
        said["nonfinite"] = f"{nonfinite:.0f} step(s) were skipped for a loss that was not finite"
    if found.zero_share is not None and found.zero_share > _ZERO_SHARE:
        said["zeros"] = (
            f"{found.zero_share:.0%} of the coefficients were exactly 0: both losses came out the "
            "same; try a larger optimizer.eps or a finer dtype"
        )
        eps = "up"
    elif found.signal_steps is not None and found.signal_steps < _SIGNAL_STEPS:
        said["rounding"] = (
            f"|L+ - L-| is {found.signal_steps:.1f} rounding steps of the loss: coefficients are "
            "mostly rounding; try a larger optimizer.eps"
        )
        eps = "up"
    if found.eps_rounding is not None and found.eps_rounding < 1.0:
        said["eps_lost"] = (
            f"eps moves a typical weight by {found.eps_rounding:.2f} of its rounding step: much "
            "of the perturbation is lost; try a larger optimizer.eps or model.dtype=float32"
        )
        eps = "up"
    if found.signal is not None and level and found.signal > _LOCAL * abs(level):
        said["not_local"] = (
            f"|L+ - L-| is {found.signal / abs(level):.0%} of the loss: no small step any more; "
            "try a smaller optimizer.eps"
        )
        eps = "down"
    if found.step_rounding is not None and found.step_rounding < _STEP and not lr:
        said["step_lost"] = (
            f"a step moves a typical weight by {found.step_rounding:.2g} of its rounding step: "
            "updates are rounded away; try a higher optimizer.lr"
        )
        lr = "up"
    if found.moved_share is not None and found.moved_share < _MOVED and not lr:
        said["not_moved"] = (
            f"{found.moved_share:.1%} of the weights have moved: updates are rounded away or "
            "masked; try a higher optimizer.lr"
        )
        lr = "up"
    change, error = found.change, found.change_error
    # A few batches say little: what dev says, where it was read, comes first.
    enough = found.num_rows >= 4 * MIN_ROWS and not lr and not fallen
    if enough and change is not None and error is not None and change > -error:
        said["flat"] = (
            f"the training loss has not fallen ({change:+.4f} ± {error:.4f}); try a higher "
            "optimizer.lr"
        )
        lr = "up"
    words = {"warnings": tuple(said.values()), "signs": tuple(said)}
    return replace(found, lr=lr, eps=eps, **words)


def _last(columns: Mapping[str, Sequence[float | None]], key: str) -> float | None:
    known = [v for v in columns.get(key, ()) if v is not None]
    return float(known[-1]) if known else None


def _first_of(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def _ratio(value: float | None, unit: float | None) -> float | None:
    return None if value is None or not unit else value / unit


def _step_rounding(
    columns: Mapping[str, Sequence[float | None]], rms: float | None, dtype: str
) -> float | None:
    """Median of lr * |projected_grad|, which moves a weight where z is 1, in rounding steps."""
    if dtype not in ("float32", "float64") or not rms:
        return None
    pairs = zip(columns.get("train/lr", ()), columns.get("zo/projected_grad", ()))  # noqa: B905
    steps = [lr * abs(c) for lr, c in pairs if lr is not None and c is not None]
    steps = [step for step in steps if math.isfinite(step)]
    return statistics.median(steps) / (rms * SPACING[dtype]) if steps else None


def _noise(losses: Sequence[float]) -> float | None:
    """Batch noise without the trend: from differences of neighbours."""
    if len(losses) < 3:
        return None
    steps = [b - a for a, b in itertools.pairwise(losses)]
    return statistics.pstdev(steps) / math.sqrt(2.0)


def _change(losses: Sequence[float], noise: float | None) -> tuple[float | None, float | None]:
    """Mean of the last third minus mean of the first, and its standard error."""
    third = len(losses) // 3
    if third < 1 or noise is None:
        return None, None
    change = statistics.fmean(losses[-third:]) - statistics.fmean(losses[:third])
    return change, noise * math.sqrt(2.0 / third)


def _dev_rise(columns: Mapping[str, Sequence[float | None]], noise: float | None) -> bool:
    """Whether the dev loss stands clearly above where it began."""
    known = [float(v) for v in columns.get("dev/loss", ()) if v is not None]
    if len(known) < 2:
        return False
    return not math.isfinite(known[-1]) or known[-1] > 1.25 * known[0] + (noise or 0.0)


#: Columns that `assess` looks at.
COLUMNS = (
    "train/loss", "train/loss_plus", "train/loss_minus", "zo/zero_coefficient_share",
    "zo/zero_share", "zo/nonfinite_total", "zo/moved_share", "model/weight_rms", "dev/loss",
    "train/lr", "zo/projected_grad",
)  # fmt: skip
