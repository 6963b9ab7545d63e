"""What records cost the training thread, in microseconds a step.

The objects of a run, with the calls that the training loop makes after each step: the journal's
row, a look at the claim (which looks when looking has cost little so far), counters, progress,
heartbeat; and every `--log-every` steps a row of metrics.jsonl, handed to the thread that tells
wandb. Between two steps the thread works for `--pause` seconds as a quick step would: it passes
over 16 MB of weights and multiplies matrices, so that caches are cold and the core is not asleep.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from zolab import compose
from zolab.bench import common
from zolab.bench.common import spread, table
from zolab.journal import Journal
from zolab.ledger import acquire
from zolab.optim import StepRecord
from zolab.progress import Progress
from zolab.tally import Counters, Metrics
from zolab.tracking.wandb import WandbMirror


def main(argv: list[str] | None = None) -> int:
    """Measure every part; print the table and write the file."""
    parser = common.parser("logging", __doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of work between steps")
    parser.add_argument(
        "--wandb", choices=("offline", "off"), default="offline", help="mirror to wandb's own file"
    )
    args = parser.parse_args(argv)
    common.settle(args)
    with tempfile.TemporaryDirectory(prefix="zolab-bench-") as name:
        folder = Path(name)
        attempt = folder / "attempts" / "1"
        attempt.mkdir(parents=True)
        with acquire(folder) as claim:
            rows = _measure(args, folder, attempt, claim)
    common.report("logging", args.json, vars(args), rows, _table(rows))
    return 0


def _measure(args: Any, folder: Path, attempt: Path, claim: Any) -> list[dict[str, Any]]:
    journal, counters, metrics = Journal(attempt), Counters(), Metrics(folder)
    if args.wandb == "offline":
        cell = compose.check(compose.compose(["tracking.mode=offline"]))
        metrics.mirror = WandbMirror(folder, cell, "bench", [])
    progress = Progress(args.steps, 0, "bench", io.StringIO())
    weights, matrix = torch.ones(4 << 20), torch.ones(256, 256)
    times: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        work()
        times.setdefault(part, []).append((time.perf_counter() - begin) * 1e6)

    for step in range(1, args.steps + 1):
        loss = 0.6931471 + 1e-6 * step
        losses = (loss, loss - 1e-4)
        record = StepRecord(step, 2e-4, losses, (0.0512345,), mean(losses), 2)
        timed("claim", claim.glance)
        timed("journal", lambda record=record: journal.append(record))
        timed("counters", lambda: counters.add(2, [24] * 16, (0.05,)))
        timed("progress", lambda s=step, value=loss: progress.step(s, value, 2))
        timed("heartbeat", lambda s=step: claim.beat({"step": s, "steps": args.steps}))
        if step % args.log_every == 0:
            row = {f"perf/{i}": 0.1 * i for i in range(12)}
            row |= {"step": step, "train/loss": loss, "zo/projected_grad": 0.05, "train/lr": 2e-4}
            timed("metrics row", lambda row=row: metrics.write(row))
        until = time.perf_counter() + args.pause
        while time.perf_counter() < until:
            weights.mul_(1.0)
            matrix @ matrix
    journal.close()
    metrics.close(0)
    rows = []
    for part, values in times.items():
        share = len(values) / args.steps
        middle, around = spread(values[1:])  # the first call opens files and makes buffers
        row = {"part": part, "calls": len(values), "microseconds": middle, "quartiles": around}
        row["microseconds_a_step"] = round(middle * share, 2)
        row["mean_microseconds_a_step"] = round(mean(values[1:]) * share, 2)
        rows.append(row)
    whole: dict[str, Any] = {"part": "all", "calls": args.steps, "microseconds": None}
    for key in ("microseconds_a_step", "mean_microseconds_a_step"):
        whole[key] = round(sum(row[key] for row in rows), 2)
    return [*rows, {**whole, "quartiles": None}]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        one = "-"
        if row["quartiles"]:
            one = "{:.1f} [{:.1f}, {:.1f}]".format(row["microseconds"], *row["quartiles"])
        steps = (row["microseconds_a_step"], row["mean_microseconds_a_step"])
        lines.append([row["part"], str(row["calls"]), one, *(f"{value:.1f}" for value in steps)])
    return table(["part", "calls", "µs a call", "µs a step, by medians", "by means"], lines)
