"""What a run counts, and the rows it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zolab.journal import JournalRow
from zolab.objectives import BatchLoss
from zolab.optim import StepRecord
from zolab.optim.clock import Clock
from zolab.tracking.local import JsonLines, read_rows
from zolab.tracking.wandb import WandbMirror


@dataclass
class Counters:
    """Running sums that are functions of the steps taken, so a resume recomputes them."""

    forwards: int = 0
    examples: int = 0
    tokens: int = 0
    zero_steps: int = 0
    coefficients: int = 0
    zero_coefficients: int = 0
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0

    def add(
        self, num_forwards: int, batch: Sequence[int], coefficients: Sequence[float] | None
    ) -> None:
        """Count one step.

        Args:
            num_forwards: passes over its batch.
            batch: tokens of each of its examples, without padding.
            coefficients: None means that its loss was not finite.
        """
        self.forwards += num_forwards
        self.examples += len(batch)
        self.tokens += num_forwards * sum(batch)
        if coefficients is None:
            self.nonfinite += 1
            self.nonfinite_in_a_row += 1
            return
        self.nonfinite_in_a_row = 0
        self.zero_steps += bool(coefficients) and not any(coefficients)
        self.coefficients += len(coefficients)
        self.zero_coefficients += sum(c == 0.0 for c in coefficients)

    def columns(self, step: int, journaled: bool) -> dict[str, Any]:
        """Columns of the row of a step; those of `zo/` for a method with a journal."""
        out: dict[str, Any] = {
            "forwards_total": self.forwards,
            "examples_total": self.examples,
            "tokens_total": self.tokens,
        }
        if journaled:
            zeros, count = self.zero_coefficients, self.coefficients
            out["zo/zero_share"] = self.zero_steps / step if step else 0.0
            out["zo/zero_coefficient_share"] = zeros / count if count else 0.0
            out["zo/nonfinite_total"] = self.nonfinite
        return out


def columns_of(record: StepRecord | JournalRow, journaled: bool) -> dict[str, float]:
    """Columns of the row of a step, from its record."""
    out = {"train/loss": record.loss, "train/lr": record.lr}
    if journaled:
        if len(record.losses) > 1:
            out["train/loss_plus"], out["train/loss_minus"] = record.losses[:2]
        c = record.coefficients
        out["zo/projected_grad"] = c[0] if c else float("nan")
    return out


@dataclass
class Since:
    """Where the time of the steps since the last row went, seconds."""

    steps: int = 0
    seconds: float = 0.0
    data: float = 0.0
    forward: float = 0.0
    update: float = 0.0
    perturb: float = 0.0
    transfer: float = 0.0
    woven: float = 0.0
    clocked: bool = False

    def note(self, seconds: float, closure: BatchLoss, before: Clock | None) -> None:
        """Count one call of `Learner.step`.

        Args:
            seconds: how long it took.
            closure: what it was called with, and nothing else was.
            before: the closure's clock as it stood before; None when it has none: what was no
                forward (and backward) pass was the update.
        """
        self.forward += closure.seconds
        if before is None or closure.clock is None:
            self.update += seconds - closure.seconds
            return
        self.clocked = True
        self.perturb += closure.clock.perturb - before.perturb
        self.update += closure.clock.update - before.update
        self.transfer += closure.clock.transfer - before.transfer
        self.woven += closure.woven

    def means(self) -> dict[str, float]:
        """Columns of a row: means over the steps."""
        names = ["data", "forward", "update"] + ["perturb", "woven"] * self.clocked
        names += ["transfer"] * (self.transfer > 0.0)
        out = {"perf/step_seconds": self.seconds / self.steps}
        return out | {f"perf/{name}_seconds": getattr(self, name) / self.steps for name in names}


class Metrics:
    """metrics.jsonl and its mirror; a row that is already there is not written again.

    Args:
        run_dir: run directory; None for a process that writes nothing.
    """

    def __init__(self, run_dir: Path | None) -> None:
        file = run_dir and run_dir / "metrics.jsonl"
        self._lines = file and JsonLines(file)
        self.rows: dict[int, dict[str, Any]] = {
            row["step"]: row for row in (read_rows(file) if file else ())
        }
        self.mirror: WandbMirror | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, first to the file, then to the mirror."""
        self._lines.write(row)
        self.rows[row["step"]] = row
        if self.mirror is not None:
            self.mirror.log(row)

    def close(self, exit_code: int) -> None:
        if self._lines is not None:
            self._lines.close()
        if self.mirror is not None:
            self.mirror.close(exit_code)
