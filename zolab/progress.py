"""Progress of one run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

#: Seconds between plain lines.
LINE_SECONDS = 15.0


class Progress:
    """Steps, loss, forwards a second and time left.

    Args:
        total: steps of the run.
        done: steps already taken by earlier attempts.
        label: what is running.
        stream: where it is shown; None for standard error.
    """

    def __init__(self, total: int, done: int, label: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total = total
        self._label = label
        self._begin = self._last_line = time.monotonic()
        self._done_before = done
        self._forwards = 0
        self._bar: Any = None
        if self._stream.isatty() and total:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=label, unit="step", file=self._stream,
                dynamic_ncols=True,
            )  # fmt: skip

    def step(self, step: int, loss: float, num_forwards: int) -> None:
        """One step more."""
        self._forwards += num_forwards
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(f"loss {loss:.4f}, {self.rate():.1f} forwards/s", False)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(
                f"step {step}/{self._total}  loss {loss:.4f}  {self.rate():.1f} forwards/s  "
                f"{self.eta(step):.0f} s left"
            )

    def evaluated(self, step: int, row: dict[str, float]) -> None:
        """Tell the numbers of an evaluation."""
        keys = [k for k in row if k.startswith(("dev/", "test/")) and k != "test/step"]
        if keys:
            self.say(f"step {step}: " + ", ".join(f"{k} {row[k]:.4f}" for k in keys))

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        line = f"[{self._label}] {text}"
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def rate(self) -> float:
        """Forwards a second since this attempt began, evaluation time included."""
        return self._forwards / max(1e-9, time.monotonic() - self._begin)

    def eta(self, step: int) -> float:
        """Seconds left at the pace of this attempt."""
        taken = step - self._done_before
        pace = (time.monotonic() - self._begin) / max(1, taken)
        return pace * (self._total - step)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
