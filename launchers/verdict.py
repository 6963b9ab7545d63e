"""What the end of a job means for its cell, when the cell could not say so itself."""

from __future__ import annotations

import contextlib
import re
import signal

from launchers import slurm_state
from launchers.display import last_lines
from launchers.plan import Entry
from zolab import ledger
from zolab.process import STOP_SIGNALS

#: The scheduler ended the job for reasons of its own; the cell goes on with the same command.
_INTERRUPTED = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED")
_LOG_LINES = 3
#: How a log ends when SLURM killed the step by itself: it says so, then srun counts the dead.
_STEP_CANCELLED = re.compile(
    r"STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*(\nsrun: error: .*)*(\nsrun: Force Terminated .*)?$"
)


def bury(entry: Entry, job: str, job_state: str | None) -> None:
    """Set state and error of a cell whose job is over, and put them on record.

    A cell that saved and stopped stays `preempted`, unless it was stopped by a scancel.

    Args:
        entry: its state is replaced.
        job: id of the job.
        job_state: SLURM's word for how it ended; None if nobody remembers.
    """
    status = ledger.read_status(entry.run_dir)
    said = status.get("state")
    if said in ("cancelled", "failed") or (said == "preempted" and job_state != "CANCELLED"):
        entry.state, entry.error = said, status.get("error")
        return
    entry.state, why = "lost", job_state or "no longer known"
    if job_state == "CANCELLED":
        entry.state = "cancelled"
    elif job_state in _INTERRUPTED:
        entry.state = "preempted"
    elif job_state == "OUT_OF_MEMORY":
        entry.state, why = "failed", f"{job_state}{last_seen(entry)}"
    elif job_state == "FAILED":
        entry.state, why = _failed(entry, job)
    entry.error = f"SLURM job {job} ended without a result ({why})"
    with contextlib.suppress(OSError):  # planning must work on a folder that cannot be written
        ledger.write_status(entry.run_dir, entry.state, error=entry.error)


def _failed(entry: Entry, job: str) -> tuple[str, str]:
    """State and reason of a cell whose process ended badly without a word."""
    name = killed_by(*(slurm_state.exit_status(job) or (0, 0)))
    if name in STOP_SIGNALS:  # asked to stop before it could listen
        return "preempted", f"FAILED, {name}"
    if name == "SIGKILL" and _STEP_CANCELLED.search("\n".join(last_lines(entry.run_dir, 16))):
        return "preempted", "FAILED, its step was cancelled"
    if name != "SIGKILL":
        return "failed", "FAILED" + (f", {name}" if name else "") + last_seen(entry)
    return "failed", f"FAILED, SIGKILL not sent by SLURM: out of memory?{last_seen(entry)}"


def killed_by(status: int, number: int) -> str | None:
    """Name of the signal that ended a job: given as such, or as a shell's status 128 + n."""
    number = number or status - 128
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return None


def last_seen(entry: Entry) -> str:
    """The size of a process at its last heartbeat, and the last lines it printed."""
    size = ledger.read_heartbeat(entry.run_dir).get("rss_bytes")
    held = f"; last seen with {size / 2**20:.0f} MiB" if size else ""
    lines = last_lines(entry.run_dir, _LOG_LINES)
    return held + (f"; last words: {' | '.join(lines)}" if lines else "")
