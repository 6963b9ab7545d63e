"""What a run counts."""

from __future__ import annotations

from zolab.tally import Counters


def test_zero_coefficients_are_counted_one_by_one_and_by_step() -> None:
    counters, batch = Counters(), [3, 5, 3, 3, 3, 3, 3, 3]
    counters.add(4, batch, (0.0, 0.5))
    counters.add(4, batch, (0.0, -0.0))
    counters.add(4, batch, None)
    counters.add(2, batch[:4], (1.0, 2.0))
    assert (counters.zero_steps, counters.zero_coefficients, counters.coefficients) == (1, 3, 6)
    assert (counters.nonfinite, counters.nonfinite_in_a_row) == (1, 0)
    assert (counters.forwards, counters.examples) == (14, 28)
    assert counters.tokens == 3 * 4 * 26 + 2 * 14


def test_counters_saved_before_a_new_one_came_are_taken_up() -> None:
    old = {"forwards": 6, "examples": 12, "zero_steps": 1, "nonfinite": 0}
    assert Counters(**old).zero_coefficients == 0
