"""Questions to SLURM: what became of jobs, how long an array may be, whether there are GPUs."""

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


def job_states(job_ids: Iterable[str]) -> dict[str, str] | None:
    """The state of each job SLURM knows, such as {"12_3": "RUNNING", "9": "CANCELLED"}.

    One squeue call for all jobs, then one sacct call for those that have left its memory.

    Returns:
        States by job id, without the jobs nobody remembers; None if SLURM does not answer.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    found = _call(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", "-j", arrays])
    if found is None:
        return None
    states = _parse(found, wanted)
    rest = wanted - set(states)
    if rest and shutil.which("sacct"):
        arrays = ",".join(sorted({job.partition("_")[0] for job in rest}))
        accounted = _call(["sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", arrays])
        states = {**_parse(accounted or "", rest), **states}
    return states


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


def _call(command: Sequence[str]) -> str | None:
    """Output of a command; None if it is missing, hangs or fails. An unknown job is no failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout
