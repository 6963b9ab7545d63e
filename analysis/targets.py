"""Which level counts as reached, by a rule that is stated before the numbers are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zolab.errors import UserError

RULES = ("final", "fraction:F", "absolute:X")


@dataclass(frozen=True)
class Target:
    """A rule for a level.

    Attributes:
        rule: "final" (the baseline's mean at its last evaluation), "fraction" (that share of the
            baseline's way from its first evaluation to its last) or "absolute".
        value: the share or the level; not used by "final".
    """

    rule: str = "final"
    value: float = 1.0

    def level(self, start: float, final: float) -> float:
        """The level to reach.

        Args:
            start: the baseline's mean at its first evaluation.
            final: its mean at its last.
        """
        if self.rule == "absolute":
            return self.value
        return final if self.rule == "final" else start + self.value * (final - start)

    def words(self, baseline: str) -> str:
        """What the level is, for a note."""
        if self.rule == "absolute":
            return "given beforehand"
        final = f"the mean over {baseline}'s seeds at their last evaluation"
        if self.rule == "final":
            return final
        return f"{self.value:g} of the way from {baseline}'s first evaluation to {final}"


FINAL = Target()


def parse_target(text: str) -> Target:
    """A rule from the command line: "final", "fraction:0.9" or "absolute:0.8".

    Raises:
        UserError: no such rule, or a number that does not fit it.
    """
    rule, _, number = text.partition(":")
    try:
        value = float(number) if number else math.nan
    except ValueError:
        value = math.nan
    if text == "final":
        return FINAL
    if rule == "fraction" and 0 < value <= 1:
        return Target(rule, value)
    if rule == "absolute" and math.isfinite(value):
        return Target(rule, value)
    raise UserError(
        f"--target={text}: must be one of {', '.join(RULES)}, 0 < F <= 1 (accuracies are 0 to 1)"
    )
