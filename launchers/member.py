"""One member of a SLURM array: looks up its cell and runs it.

Called by the batch script as `python -m launchers.member JOBS TOKEN`. Signals are caught before
anything heavy is loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from zolab import ledger
from zolab.process import stop_signals_caught


def main(jobs: Path, token: str) -> int:
    """Run the cell that the record of submission `token` gives to this member; exit status."""
    from launchers.job import Cell, job_id
    from launchers.submission import read_record

    record = read_record(jobs, token)
    if not record:
        print(f"{jobs / token}.json: gone, and with it what this job should run", file=sys.stderr)
        return 1
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    job = job_id() or ""
    os.environ.update(record["environment"])
    os.environ[ledger.JOB_ID_VARIABLE] = job
    os.environ[ledger.RESTART_VARIABLE] = os.environ.get("SLURM_RESTART_COUNT") or "0"
    os.environ[ledger.LOG_VARIABLE] = str(jobs / log_name(job))
    folder = jobs.parent / record["cells"][index]
    if not folder.is_dir():
        print(f"{folder}: gone, so there is nothing to run", file=sys.stderr)
        return 0
    if ledger.read_status(folder).get("state") == "cancelled":
        print(f"{folder}: cancelled while its job was on the way", file=sys.stderr)
        return 0
    Cell(folder, record["function"])()
    return 0


def log_name(job: str) -> str:
    """The file in which a member's output ends up, as submitit names it."""
    return f"{job}_0_log.out"


if __name__ == "__main__":
    with stop_signals_caught():
        sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
