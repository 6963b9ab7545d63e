"""What a sweep costs beside its cells: its wall time against theirs, on a real SLURM.

    python -m tests.slurm.overhead                  12 real cells of about 20 s, 4 at a time
    python -m tests.slurm.overhead --cells 24 --parallel 8

The clock runs from the composed cells to the last word of `sweep.wait=true`. A cell's time is from
the start of its process to its result. Cells pause after each step, so that the
figure tells about waiting and starting, and not about how many cells two cores can compute at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from launchers.sweep import launch
from tests.slurm.cluster import private_slurm, what_is_missing
from tests.test_resume import prepare
from zolab import compose, ledger

CELLS = Path(__file__).resolve().parents[1] / "launchers"


def measure(root: Path, cells: int, parallel: int, steps: int) -> dict[str, float]:
    """Seconds: of the sweep, of its cells together, and of their parts (medians)."""
    folders = [prepare(root, f"train.steps={steps}", f"seed={seed}") for seed in range(cells)]
    launcher = {
        "kind": "slurm", "cpus": 1, "gpus": 0, "time_minutes": 10, "array_parallelism": parallel,
    }  # fmt: skip
    given = [compose.read_cell(folder) for folder in folders]
    begin = time.monotonic()
    outcome = launch(given, launcher, {"wait": True}, function="paced_cells:run")
    wall = time.monotonic() - begin
    assert outcome.exit_code == 0
    results = [ledger.read_json(folder / "result.json") for folder in folders]
    imported = [result["startup"]["imported"] for result in results]
    prepared = [result["startup"]["prepared"] for result in results]
    times = [result["wall_seconds"] + age for result, age in zip(results, imported, strict=True)]
    first = [result["first_step_seconds"] for result in results]
    return {
        "sweep": wall,
        "cells": sum(times),
        "cell": statistics.median(times),
        "imported": statistics.median(imported),
        "prepared": statistics.median(prepared),
        "first_step": statistics.median(first),
        "overhead": wall / (sum(times) / parallel),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--steps", type=int, default=9, help="with a pause of 1.5 s after each")
    asked = parser.parse_args()
    if asked.cells % asked.parallel:
        parser.error("--cells: a multiple of --parallel, else places stay empty in the end")
    if missing := what_is_missing():
        print(f"a private SLURM needs {', '.join(missing)}", file=sys.stderr)
        return 1
    path = [str(CELLS), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(path))
    with private_slurm() as environment, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment)
        found = measure(Path(folder), asked.cells, asked.parallel, asked.steps)
    print(
        f"{asked.cells} cells, {asked.parallel} at a time: {found['sweep']:.1f} s for "
        f"{found['cells']:.1f} s of cells; overhead {found['overhead']:.3f}\n"
        f"a cell: {found['cell']:.1f} s; imports until {found['imported']:.1f} s, prepared at "
        f"{found['prepared']:.1f} s, first step at {found['first_step']:.1f} s (medians)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
