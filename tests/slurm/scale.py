"""Large grids by the clock, on a real SLURM: planning, submitting, and the table of cells.

    python -m tests.slurm.scale

Each command runs as a user gives it, in a process of its own; wall time and processor time. The
jobs are cancelled before they get anywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.slurm.cluster import private_slurm, what_is_missing

GRID = ("optimizer=mezo,mezo_momentum", "sparsity=none,random", "optimizer.lr=1e-6,1e-5")
#: What each command may take (seconds of wall time on a quiet machine).
LIMITS = {
    "plan 1,000 cells": 10.0,
    "plan 10,000 cells": 90.0,
    "plan and submit 1,000 cells": 15.0,
    "status of 1,000 cells": 2.0,
}


def timed(name: str, *arguments: str) -> str:
    """Run `zolab` and print what it took; what it said."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "zolab", *arguments], stdout=subprocess.PIPE, text=True
    )
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall, cpu = time.monotonic() - begin, used.ru_utime + used.ru_stime
    assert status == 0, said
    print(f"{name:28s} {wall:6.2f} s wall  {cpu:6.2f} s CPU  (at most {LIMITS[name]:.0f} s)")
    return said


def main() -> int:
    if missing := what_is_missing():
        print(f"a private SLURM needs {', '.join(missing)}", file=sys.stderr)
        return 1
    with private_slurm() as environment, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment)
        root = Path(folder) / "runs"

        def sweep(seeds: int) -> list[str]:
            here = ("launcher=slurm", "launcher.gpus=0", "launcher.array_parallelism=1")
            return ["-m", *GRID, f"seed=range(0,{seeds})", f"run_root={root}", *here]

        for count in (1_000, 10_000):
            said = timed(f"plan {count:,} cells", *sweep(count // 8), "sweep.dry_run=true")
            assert said.startswith(f"{count} cells: {count} to run"), said[:200]
        subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
        said = timed("plan and submit 1,000 cells", *sweep(125))
        assert "submitted 1000 cells as SLURM job" in said, said
        said = timed("status of 1,000 cells", "status", str(root), "--json")
        assert said.count('"submitted"') >= 1000, said[:400]
        subprocess.run(["scancel", "--me"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
