"""A whole run from the command line: seconds to the first step, and what share is not forward.

`zolab …` is started as a process of its own in a fresh folder, as a user would, with the given
overrides (default: the embedded model and task with MeZO). Times come from the run's own records:
`first_step_seconds` counts from the start of the process; `forward_share` is the time of the
forwards over that of the training steps; the rest of the whole is evaluating, writing and ending.
Tokens are those that the training's forwards read, without padding: `tokens_per_second` over the
whole process, `train_tokens_per_second` over its steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zolab.bench import common
from zolab.bench.common import spread, table
from zolab.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run as often as asked; print the table and write the file."""
    parser = common.parser("startup", __doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a run")
    args = parser.parse_args(argv)
    common.settle(args)
    rows = [_run(args, number) for number in range(args.runs)]
    for key in ("first_step_seconds", "whole_seconds", "forward_share", "tokens_per_second"):
        middle, around = spread([row[key] for row in rows])
        print(f"{key}: {middle:.4g} [{around[0]:.4g}, {around[1]:.4g}]")
    common.report("startup", args.json, vars(args), rows, _table(rows))
    return 0


def _run(args: Any, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="zolab-bench-") as folder:
        command = [sys.executable, "-m", "zolab", f"train.steps={args.steps}", f"seed={number}"]
        command += [f"run_root={folder}/runs", *args.overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        begin = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        whole = time.perf_counter() - begin
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"the measured run failed: {last}")
        return _read(next(Path(folder, "runs").glob("*/result.json")).parent, whole)


def _read(folder: Path, whole: float) -> dict[str, Any]:
    """The figures of one finished run."""
    result = json.loads((folder / "result.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = forward = data = evaluation = 0.0
    before = 0
    for row in rows:
        count, before = row["step"] - before, row["step"]
        steps += count * row.get("perf/step_seconds", 0.0)
        forward += count * row.get("perf/forward_seconds", 0.0)
        data += count * row.get("perf/data_seconds", 0.0)
        evaluation += row.get("perf/evaluation_seconds", 0.0)
    return {
        "steps": result["steps"],
        "first_step_seconds": result["first_step_seconds"],
        "whole_seconds": whole,
        "train_seconds": steps,
        "forward_share": forward / steps if steps else 0.0,
        "data_share": data / steps if steps else 0.0,
        "evaluation_seconds": evaluation,
        "forwards_per_second": result["forwards_total"] / whole,
        "tokens_per_second": rows[-1]["tokens_total"] / whole,
        "train_tokens_per_second": rows[-1]["tokens_total"] / steps if steps else 0.0,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = list(rows[0])
    return table(header, [[f"{row[key]:.4g}" for key in header] for row in rows])
