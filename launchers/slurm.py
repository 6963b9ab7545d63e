"""Cells as members of SLURM job arrays. No process needs to stay behind after the submission."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from launchers import slurm_state
from launchers.display import Board
from launchers.job import JOBS, RUN
from launchers.plan import Entry
from launchers.submission import job_name, new_record, set_array
from launchers.watch import POLL_SECONDS, Watch
from zolab import ledger
from zolab.errors import UserError
from zolab.process import SIGNALS_VARIABLE, STOP_SIGNALS

_LOOK_SECONDS = 1.0
#: Heartbeats of cells on a cluster: thousands of them meet at one file server.
BEAT_SECONDS = 30.0


def submit(entries: Sequence[Entry], config: Mapping[str, Any], function: str = RUN) -> list[str]:
    """Submit cells as arrays no longer than the cluster allows, and record which job has which.

    Args:
        entries: cells of one run_root; their states become `submitted`.
        config: the launcher config (partition, account, qos, gres, gpus, cpus, memory_gb,
            time_minutes, array_parallelism, setup, signal_seconds, ...).
        function: what runs a cell, "module:function".

    Returns:
        Ids of the arrays.

    Raises:
        UserError: SLURM refused; its message is quoted, and cells not submitted stay planned.
    """
    if not entries:
        return []
    jobs = entries[0].run_dir.parent / JOBS
    asked = parameters(config)
    size = slurm_state.max_array_size()
    settings = {"function": function, "environment": environment(config)}
    arrays: list[str] = []
    for start in range(0, len(entries), size):
        chunk = entries[start : start + size]
        token = new_record(jobs, chunk, settings)
        for index, entry in enumerate(chunk):
            fields = {"job_id": None, "log": None, "submission": [token, index]}
            ledger.write_status(entry.run_dir, "submitted", sync=False, **fields)
        try:
            array = slurm_state.sbatch(script(jobs, token, len(chunk), asked))
        except slurm_state.Refused as refusal:
            message = f"SLURM refused {len(entries) - start} of {len(entries)} cells: {refusal}"
            for entry in entries[start:]:
                ledger.write_status(entry.run_dir, "planned", error=message, submission=None)
            (jobs / f"{token}.json").unlink()
            raise UserError(message) from refusal
        set_array(jobs, token, array)
        arrays.append(array)
        for entry in chunk:
            entry.state = "submitted"
    return arrays


def script(jobs: Path, token: str, members: int, asked: Mapping[str, Any]) -> str:
    """The batch script of an array. It names a folder and a token; no cell is written into it."""
    executor = SlurmExecutor(jobs)
    executor.update_parameters(**asked, job_name=job_name(token))
    executor.parameters["map_count"] = members
    parts = (sys.executable, "-u", "-m", "launchers.member", str(jobs), token)
    return executor._make_submission_file_text(shlex.join(parts), token)


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """What the members of an array must know of the launcher config."""
    signals = config.get("stop_signals") or STOP_SIGNALS
    return {
        ledger.BEAT_VARIABLE: str(config.get("beat_seconds") or BEAT_SECONDS),
        SIGNALS_VARIABLE: ",".join(signals),
    }


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The launcher config in the words of submitit; what is null is left to the cluster."""
    cpus = int(config.get("cpus") or 4)
    ranks = int(config.get("ranks") or 1)
    asked: dict[str, Any] = {
        "time": int(config.get("time_minutes") or 60),
        "cpus_per_task": cpus,
        "nodes": int(config.get("nodes") or 1),
        "ntasks_per_node": ranks,
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
        asked["gpus_per_node"] = int(gpus) * ranks
    return asked


def submit_report(root: Path, arrays: Sequence[str], config: Mapping[str, Any]) -> str:
    """Queue a job that writes `root`/report when all members of the arrays have ended, well or not.

    Returns:
        The job's id.

    Raises:
        UserError: SLURM refused it; the cells are queued all the same.
    """
    jobs = root / JOBS
    asked = parameters({**config, "gpus": 0, "gres": None})
    executor = SlurmExecutor(jobs)
    executor.update_parameters(**asked, job_name="zolab-report", use_srun=False)
    command = (sys.executable, "-m", "zolab", "report", str(root), "--out", str(root / "report"))
    text = executor._make_submission_file_text(shlex.join(command), "report")
    try:
        return slurm_state.sbatch(text, [f"--dependency=afterany:{':'.join(arrays)}"])
    except slurm_state.Refused as refusal:
        raise UserError(f"launcher.report: SLURM refused the job: {refusal}") from refusal


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
