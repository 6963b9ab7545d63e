"""Losses that stay on the device, and the arithmetic from them to an update's coefficients.

A step whose losses are read at once makes the host wait for both forwards before it can put the
update in line. Here the host computes with numbers it has not seen: each operation on a `Late` is
put in line on the device, in float64 and in the host's order, so a coefficient has the bits that it
has when losses are read. Who needs to see a number asks `float`, and waits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zolab.optim.sent import Fetched, sent

if TYPE_CHECKING:
    from zolab.optim.zero_order import StepRecord

#: Decimal digits after the first that a loss keeps at 9; all of float64 beyond that.
_NINE = 8
#: Powers of ten that float64 holds exactly.
_EXACT = 22


class Late:
    """A number on a device.

    The same operation with the same operand is done once: parameters of a group share their terms.

    Args:
        value: ().

    Attributes:
        value: the same in float64.
    """

    __slots__ = ("_made", "value")

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().double()
        self._made: dict[tuple[str, float | Late], Late] = {}

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __add__(self, other: float | Late) -> Late:
        return self._by("add", other, torch.add)

    __radd__ = __add__

    def __sub__(self, other: float | Late) -> Late:
        return self._by("sub", other, torch.sub)

    def __mul__(self, other: float | Late) -> Late:
        return self._by("mul", other, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: float | Late) -> Late:
        return self._by("div", other, torch.div)

    def where(self, keep: Late, other: float) -> Late:
        """This where `keep` is not 0, else another number; also where this is not finite."""
        key = (f"where {other}", keep)
        if key not in self._made:
            self._made[key] = Late(torch.where(keep.value != 0.0, self.value, other))
        return self._made[key]

    def rounded(self, digits: int) -> Late:
        """To so many significant digits, 9 or 17, as the host's `f"{x:.9g}"` does it."""
        return self if digits > _NINE + 1 else Late(nine_digits(self.value))

    def _by(self, name: str, other: float | Late, do: Callable[..., Tensor]) -> Late:
        key = (name, other)
        if key not in self._made:
            # A tensor, never a plain number: CUDA divides by one with its rounded reciprocal.
            by = other.value if isinstance(other, Late) else torch.full_like(self.value, other)
            self._made[key] = Late(do(self.value, by))
        return self._made[key]


def number(loss: Any) -> float | Late:
    """What a closure gave as a number: late ones stay so."""
    return loss if isinstance(loss, Late) else float(loss)


def operand(a: float | Late) -> float | Tensor:
    """A number as torch's operations on tensors of its device take it."""
    return a.value if isinstance(a, Late) else a


def to_digits(loss: float | Late, digits: int) -> float | Late:
    """A loss to so many significant digits."""
    return loss.rounded(digits) if isinstance(loss, Late) else float(f"{loss:.{digits}g}")


def finite(
    losses: Sequence[float | Late], slopes: tuple[float | Late, ...]
) -> tuple[tuple[float | Late, ...] | None, Late | None]:
    """What a step goes by: its slopes, or None if a loss is not finite.

    Returns:
        The slopes; and None, or with late losses 1 where all are finite and 0 where not, in which
        case the slopes are 0.
    """
    late = [loss.value for loss in losses if isinstance(loss, Late)]
    if not late:
        return (slopes if all(map(math.isfinite, losses)) else None), None
    alive = Late(torch.stack(late).isfinite().all().double())
    return tuple(slope.where(alive, 0.0) for slope in slopes), alive


class Unread:
    """The record of a step whose numbers are on their way to the host.

    Args:
        record: with late losses, coefficients and loss.
        alive: 0 where a loss is not finite.
    """

    def __init__(self, record: StepRecord, alive: Late) -> None:
        self.step, self.loss, self.losses = record.step, record.loss, record.losses
        self._record: StepRecord | None = None
        self._begun = record
        every = (*record.losses, *record.coefficients, record.loss, alive)
        self._numbers = Fetched(torch.stack([one.value for one in every]))

    def read(self) -> StepRecord:
        """The record; waits for the step's last forward, and for nothing that came later."""
        if self._record is None:
            begun = self._begun
            *numbers, loss, alive = self._numbers.read().tolist()
            losses, coefficients = numbers[: len(begun.losses)], numbers[len(begun.losses) :]
            self._record = replace(
                begun,
                losses=tuple(losses),
                coefficients=tuple(coefficients) if alive else None,
                loss=loss,
            )
        return self._record


@functools.cache
def _powers(device: torch.device) -> Tensor:
    """10**k from -14 to 22; the bits of those below 0 only tell on which side a number is."""
    with torch.inference_mode(False):
        powers = [10.0**k for k in range(_NINE - _EXACT, _EXACT + 1)]
        return sent(torch.tensor(powers, dtype=torch.float64), device)


def nine_digits(x: Tensor) -> Tensor:
    """float(f"{x:.9g}") of each number, made on the device.

    Exact for 0 and for float32 numbers of magnitude 1e-13 to 1e9: the nine digits as an integer
    come from a product with a power of ten that is split so that nothing is lost, and their
    quotient by that power is one correctly rounded division. Larger numbers keep all digits before
    the point, smaller ones 22 after it; other float64 numbers may be rounded the other way where
    they are within 1e-16 of the border between two decimals.

    Args:
        x: float64, any shape.

    Returns:
        float64 of the same shape; what is not finite stays.
    """
    size = x.abs()
    powers = _powers(x.device)  # from the one whose numbers have `_EXACT` places to keep
    exponent = torch.bucketize(size, powers, right=True) + (_NINE - _EXACT - 1)
    # `take`: plain indexing by one number would ask the host for it.
    by = powers[_EXACT - _NINE :].take((_NINE - exponent).clamp(0, _EXACT))
    high = by.float().double()  # 24 of its bits, so the product with 24 bits is exact
    first, second = size * high, size * (by - high)
    whole = torch.round(first + second)
    rest = (first - whole) + second
    even = torch.remainder(whole, 2.0) == 0.0
    up = (rest > 0.5) | ((rest == 0.5) & ~even)
    down = (rest < -0.5) | ((rest == -0.5) & ~even)
    whole = whole + up.double() - down.double()
    return torch.where(x.isfinite(), torch.copysign(whole / by, x), x)
