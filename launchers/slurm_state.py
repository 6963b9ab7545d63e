"""What is asked of SLURM, and what it is told: one function a command."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

#: SLURM's states of a job that runs, will run, or will run again.
ACTIVE = frozenset(
    [
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "SUSPENDED",
        "STOPPED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "COMPLETING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    ]
)
_TIMEOUT_SECONDS = 60
_DEFAULT_MAX_ARRAY = 1001


def is_available() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def job_states(job_ids: Iterable[str], timeout: float = _TIMEOUT_SECONDS) -> dict[str, str] | None:
    """The state of each job SLURM knows, such as {"12_3": "RUNNING", "9": "CANCELLED"}.

    One squeue call for all jobs, then one sacct call for those that have left its memory; each may
    take `timeout` seconds.

    Returns:
        States by job id, without the jobs nobody remembers; None if SLURM does not answer.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    found = _call(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", "-j", arrays], timeout)
    if found is None:
        return None
    states = _parse(found, wanted)
    rest = wanted - set(states)
    if rest and shutil.which("sacct"):
        arrays = ",".join(sorted({job.partition("_")[0] for job in rest}))
        asked = ["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", arrays]
        accounted = _call(asked, timeout)
        states = {**_parse(accounted or "", rest), **states}
    return states


def state_now(job: str) -> str | None:
    """JobState of one job as the controller has it, None if it does not answer."""
    match = re.search(r"\bJobState=(\w+)", _call(["scontrol", "show", "job", "-o", job]) or "")
    return match.group(1) if match else None


def requeue(job: str) -> bool:
    """Put a job, or one member `A_i` of an array, back into the queue; False if refused."""
    return _call(["scontrol", "requeue", job]) is not None


def exit_status(job: str) -> tuple[int, int] | None:
    """How a failed job ended: (exit status, signal), from the controller or the accounting.

    The accounting may lag behind, and says 0:0 until it has caught up.
    """
    shown = _call(["scontrol", "show", "job", "-o", job]) or ""
    match = re.search(r"\bExitCode=(\d+):(\d+)", shown)
    if match is None:
        found = _call(["sacct", "-n", "-P", "-X", "-o", "ExitCode", "-j", job]) or ""
        match = re.search(r"(\d+):(\d+)", found)
    return (int(match.group(1)), int(match.group(2))) if match else None


def array_named(name: str) -> str | None:
    """Id of the array of this name, if SLURM knows one."""
    found = _call(["squeue", "-h", "-t", "all", "-o", "%F", "-n", name]) or ""
    if not found.split() and shutil.which("sacct"):
        found = _call(["sacct", "-n", "-P", "-X", "-o", "JobID", "--name", name]) or ""
    return found.split()[0].partition("_")[0] if found.split() else None


def cancel(jobs: Sequence[str]) -> str:
    """scancel jobs; what SLURM said against it, empty if nothing."""
    command = ["scancel", *jobs]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


class Refused(Exception):
    """SLURM did not take a job; the message is its own."""


def sbatch(script: str, options: Sequence[str] = ()) -> str:
    """Submit a batch script; returns the job's id.

    Raises:
        Refused: with SLURM's message.
    """
    command = ["sbatch", "--parsable", *options]
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(str(error)) from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
        raise Refused("; ".join(said) or done.stderr.strip() or f"status {done.returncode}")
    return done.stdout.strip().partition(";")[0]


def max_array_size() -> int:
    """Most members one array may have (MaxArraySize bounds the index, which starts at 0)."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]) or "")
    return max(1, (int(match.group(1)) if match else _DEFAULT_MAX_ARRAY) - 1)


def has_gpus(partition: str | None = None) -> bool:
    """Whether any node of the cluster, or of one partition, offers a GPU."""
    where = ["-p", partition] if partition else []
    gres = _call(["sinfo", "-h", "-o", "%G", *where]) or ""
    return re.search(r"(^|[,\s])gpu[:\s]", gres + "\n") is not None


def _parse(text: str, wanted: set[str]) -> dict[str, str]:
    states = {}
    for line in text.splitlines():
        job, _, state = line.strip().partition("|")
        if job in wanted and state:
            states[job] = state.split()[0]  # sacct: "CANCELLED by 0"
    return states


def _call(command: Sequence[str], timeout: float = _TIMEOUT_SECONDS) -> str | None:
    """Output of a command; None if it is missing, hangs or fails. An unknown job is no failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout
