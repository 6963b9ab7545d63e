"""Cells as members of SLURM job arrays. No process needs to stay behind after the submission."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launchers import slurm_state
from launchers.display import Board
from launchers.job import JOBS, RUN, Cell
from launchers.plan import Entry
from launchers.watch import POLL_SECONDS, Watch
from zolab import ledger
from zolab.errors import UserError

_LOOK_SECONDS = 1.0


def submit(entries: Sequence[Entry], config: Mapping[str, Any], function: str = RUN) -> list[str]:
    """Submit cells as arrays no longer than the cluster allows, and record which job has which.

    Args:
        entries: cells of one run_root; their states become `submitted`.
        config: the launcher config (partition, account, qos, gres, gpus, cpus, memory_gb,
            time_minutes, array_parallelism, setup, signal_seconds).
        function: what runs a cell, "module:function".

    Returns:
        Ids of the arrays.

    Raises:
        UserError: SLURM refused; its message is quoted, and cells not submitted stay planned.
    """
    if not entries:
        return []
    folder = entries[0].run_dir.parent / JOBS
    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters(config))
    size = slurm_state.max_array_size()
    arrays: list[str] = []
    for start in range(0, len(entries), size):
        chunk = entries[start : start + size]
        kept = set(folder.glob("*.pkl"))
        try:
            jobs = executor.submit_array([Cell(entry.run_dir, function) for entry in chunk])
        except (FailedJobError, FailedSubmissionError) as error:
            for path in set(folder.glob("*.pkl")) - kept:
                path.unlink()
            said = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            raise UserError(
                f"SLURM refused {len(entries) - start} of {len(entries)} cells: "
                f"{'; '.join(said) or error}"
            ) from error
        arrays.append(jobs[0].job_id.partition("_")[0])
        for entry, job in zip(chunk, jobs, strict=True):
            entry.state = "submitted"
            # a member that already runs has written its own status, which says more
            if ledger.read_status(entry.run_dir).get("state") in (None, "planned", "submitted"):
                log = str(job.paths.stdout)
                ledger.write_status(entry.run_dir, "submitted", job_id=job.job_id, log=log)
    return arrays


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The launcher config in the words of submitit; what is null is left to the cluster."""
    cpus = int(config.get("cpus") or 4)
    asked: dict[str, Any] = {
        "job_name": "zolab",
        "time": int(config.get("time_minutes") or 60),
        "cpus_per_task": cpus,
        "array_parallelism": int(config.get("array_parallelism") or 256),
        "signal_delay_s": int(config.get("signal_seconds") or 120),
        "stderr_to_stdout": True,
        "setup": [
            # srun does not take the number of CPUs over from sbatch since SLURM 22.05
            f"export SRUN_CPUS_PER_TASK={cpus}",
            f"export OMP_NUM_THREADS={cpus} OMP_WAIT_POLICY=passive",
            *(config.get("setup") or []),
        ],
        "additional_parameters": {"requeue": True},
    }
    for key in ("partition", "account", "qos", "gres"):
        if config.get(key):
            asked[key] = config[key]
    if config.get("memory_gb"):
        asked["mem"] = f"{round(float(config['memory_gb']) * 1024)}MB"
    gpus = config.get("gpus")
    if gpus is None and not config.get("gres"):
        gpus = 1 if slurm_state.has_gpus(config.get("partition")) else 0
    if gpus:
        asked["gpus_per_node"] = int(gpus)
    return asked


def follow(entries: Sequence[Entry], board: Board, poll_seconds: float = POLL_SECONDS) -> None:
    """Return when every cell has a result or will not get one by itself.

    Args:
        entries: submitted or running cells; their states are kept up to date.
        board: what to tell about progress.
        poll_seconds: least time between two questions to SLURM.
    """
    watch = Watch(entries, poll_seconds, lag_seconds=min(10.0, poll_seconds))
    while watch.entries:
        before = {entry.run_id: entry.state for entry in watch.entries}
        ended = watch.poll()
        for entry in watch.entries:
            if entry.state == "running" != before[entry.run_id]:
                board.started(entry)
        for entry in ended:
            board.ended(entry)
        board.tick()
        if watch.entries:
            time.sleep(_LOOK_SECONDS)


def log_folder(entries: Sequence[Entry]) -> Path:
    """Where the output of the jobs goes."""
    return entries[0].run_dir.parent / JOBS
