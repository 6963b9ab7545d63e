"""What a person sees of a running sweep: live lines on a terminal, a modest log elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from launchers.plan import Entry
from zolab import ledger

_REDRAW_SECONDS = 0.5
_PLAIN_SECONDS = 30.0
_BAR = 16
_LOG_LINES = 5


class Board:
    """Progress of a sweep.

    Args:
        entries: all cells of the plan.
        out: where to write; standard output if None.
        parallel: cells at a time, for the estimate of what is left.
    """

    def __init__(
        self, entries: Iterable[Entry], out: TextIO | None = None, parallel: int = 1
    ) -> None:
        self.entries = list(entries)
        self.out = out or sys.stdout
        self.parallel = max(1, parallel)
        self.live = self.out.isatty()
        self._start = self._last = time.monotonic()
        self._started: dict[str, float] = {}
        self._seconds: list[float] = []
        self._drawn = 0

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._erase()
        print(text, file=self.out, flush=True)

    def started(self, entry: Entry) -> None:
        """A cell was handed to a process."""
        self._started[entry.run_id] = time.monotonic()

    def ended(self, entry: Entry) -> None:
        """A cell reached a state it will not leave by itself."""
        begin = self._started.pop(entry.run_id, None)
        took = ""
        if begin is not None:
            seconds = time.monotonic() - begin
            took = "  " + clock(seconds)
            if entry.state == "done":
                self._seconds.append(seconds)
        found = _result(entry.run_dir) if entry.state == "done" else entry.error or ""
        done = sum(e.state == "done" for e in self.entries)
        count = f"[{done}/{len(self.entries)} done]"
        self.note(f"{count} {entry.state:9s} {entry}{took}{'  ' + found if found else ''}")

    def tick(self) -> None:
        """Redraw, if it is time to."""
        now = time.monotonic()
        if now - self._last < (_REDRAW_SECONDS if self.live else _PLAIN_SECONDS):
            return
        self._last = now
        running = [entry for entry in self.entries if entry.state == "running"]
        beats = [ledger.read_heartbeat(entry.run_dir) for entry in running]
        totals = self.totals(beats)
        if not self.live:
            print(totals, file=self.out, flush=True)
            return
        size = shutil.get_terminal_size()
        lines = [_line(entry, beat) for entry, beat in zip(running, beats, strict=True)]
        room = max(1, size.lines - 3)
        if len(lines) > room:
            lines = [*lines[:room], f"... and {len(lines) - room} more"]
        self._erase()
        shown = [line[: size.columns - 1] for line in (*lines, totals)]
        self.out.write("\n".join(shown) + "\n")
        self.out.flush()
        self._drawn = len(shown)

    def totals(self, beats: Iterable[dict] = ()) -> str:
        """One line: cells by state, time used and time left."""
        states = [entry.state for entry in self.entries]
        parts = [f"{states.count('done')}/{len(states)} done"]
        for state in ("running", "failed", "cancelled", "lost", "preempted"):
            if state in states:
                parts.append(f"{states.count(state)} {state}")
        waiting = states.count("planned") + states.count("submitted")
        if waiting:
            parts.append(f"{waiting} waiting")
        elapsed = time.monotonic() - self._start
        left = self._left(waiting, list(beats), elapsed)
        eta = f", about {clock(left)} left" if left is not None else ""
        return f"{', '.join(parts)}; {clock(elapsed)} elapsed{eta}"

    def _left(self, waiting: int, beats: list[dict], elapsed: float) -> float | None:
        """Seconds until all cells are done, None as long as there is nothing to go by."""
        parts = [_share(beat) for beat in beats]
        cost = None
        if self._seconds:
            cost = sum(self._seconds) / len(self._seconds)
        elif sum(parts) > 0.1 * len(parts):
            cost = elapsed * len(parts) / sum(parts)
        if cost is None or not (waiting or parts):
            return None
        return cost * (waiting + sum(1 - part for part in parts)) / self.parallel

    def close(self) -> None:
        """Remove the live lines."""
        self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self.out.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0


def error_table(entries: Iterable[Entry]) -> str:
    """All given cells with their error and the last lines of their logs."""
    lines = []
    for entry in entries:
        lines.append(f"  {entry.state:9s} {entry}")
        lines.append(f"            {entry.error or 'no error was recorded'}")
        lines += [f"            | {line}" for line in last_lines(entry.run_dir)]
        lines.append(f"            in {entry.run_dir}")
    return "\n".join(lines)


def last_lines(run_dir: Path, count: int = _LOG_LINES) -> list[str]:
    """The last lines that a cell's process printed; its traceback if there is no log."""
    log = ledger.read_status(run_dir).get("log")
    errors = sorted(run_dir.glob("attempts/*/error.txt"), key=lambda path: path.stat().st_mtime)
    for path in ([Path(log)] if log else []) + errors[-1:]:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-count:]
    return []


def clock(seconds: float) -> str:
    """A duration such as 1:02:03 or 0:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _share(beat: dict) -> float:
    step, steps = beat.get("step"), beat.get("steps")
    return min(1.0, step / steps) if step and steps else 0.0


def _line(entry: Entry, beat: dict) -> str:
    share = _share(beat)
    bar = "#" * round(share * _BAR)
    parts = [f"{entry.run_id}  [{bar:<{_BAR}s}]"]
    if beat.get("steps"):
        parts.append(f"{beat.get('step', 0)}/{beat['steps']}")
    loss = beat.get("loss")
    if isinstance(loss, float) and math.isfinite(loss):
        parts.append(f"loss {loss:.4f}")
    if beat.get("forwards_per_second"):
        parts.append(f"{beat['forwards_per_second']:.1f} fwd/s")
    if isinstance(beat.get("eta_seconds"), (int, float)) and math.isfinite(beat["eta_seconds"]):
        parts.append(f"eta {clock(beat['eta_seconds'])}")
    return "  ".join([*parts, entry.label])


def _result(run_dir: Path) -> str:
    best = ledger.read_json(run_dir / "result.json").get("best")
    best = best if isinstance(best, dict) else {}
    names = ("dev/accuracy", "test/accuracy", "dev/f1", "test/f1")
    return "  ".join(f"{n} {best[n]:.3f}" for n in names if isinstance(best.get(n), float))
