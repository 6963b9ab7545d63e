"""Following cells that other processes or SLURM jobs run, without hanging on dead ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from launchers import slurm_state
from launchers.plan import Entry
from launchers.submission import Jobs, is_settling
from launchers.verdict import bury
from zolab import ledger

JobStates = Callable[[list[str]], dict[str, str] | None]

#: One question to SLURM per so many seconds, so that many sweeps do not load the controller.
POLL_SECONDS = 30.0
#: Result files may lag behind the scheduler on network filesystems.
LAG_SECONDS = 10.0


def settle(entries: Iterable[Entry], job_states: JobStates | None = None) -> None:
    """Let SLURM say what became of the jobs of cells that are not running and not done.

    A cell whose job waits or runs is `submitted`; one whose job is gone without a result is
    `failed`, `cancelled`, `preempted` or `lost`, and its status is set right. If SLURM does not
    answer, cells stay as their files say. A `submitted` cell whose submission never reached SLURM
    is planned again.
    """
    known = Jobs()
    jobs: dict[str, Entry] = {}
    for entry in entries:
        if entry.state in ("submitted", "lost", "preempted"):
            job = known.of(entry)
            if job:
                jobs[job] = entry
            elif entry.state == "submitted" and not is_settling(entry):
                entry.state = "planned"
    if not jobs or (job_states is None and not slurm_state.is_available()):
        return
    states = (job_states or slurm_state.job_states)(list(jobs))
    if states is None:
        return
    for job, entry in jobs.items():
        if states.get(job) in slurm_state.ACTIVE:
            entry.state = "submitted"
        else:
            bury(entry, job, states.get(job))


class Watch:
    """Cells that run elsewhere. Call `poll` about once a second.

    Args:
        entries: cells to follow.
        poll_seconds: least time between two questions to SLURM.
        lag_seconds: how long a result may be missing after its job ended.
        job_states: asks SLURM; `slurm_state.job_states` if None.
    """

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        poll_seconds: float = POLL_SECONDS,
        lag_seconds: float = LAG_SECONDS,
        job_states: JobStates | None = None,
    ) -> None:
        self.entries = list(entries)
        self.poll_seconds = poll_seconds
        self.lag_seconds = lag_seconds
        self.job_states = job_states
        self._known = Jobs()
        self._asked = time.monotonic()
        self._gone: dict[str, tuple[float, str | None]] = {}

    def add(self, entry: Entry) -> None:
        """Follow one more cell."""
        self.entries.append(entry)

    def poll(self) -> list[Entry]:
        """Update all states; return and forget the cells that will not change by themselves."""
        jobs: dict[str, Entry] = {}
        ended = []
        for entry in self.entries:
            entry.state = ledger.state_of(entry.run_dir) if entry.run_dir.is_dir() else "lost"
            if entry.state == "running":
                continue
            job = self._known.of(entry)
            settling = entry.state == "submitted" and not job and is_settling(entry)
            if entry.state in ("done", "failed", "cancelled") or not (job or settling):
                entry.error = ledger.read_status(entry.run_dir).get("error")
                ended.append(entry)
            else:
                entry.state = "submitted"
                if job:
                    jobs[job] = entry
        now = time.monotonic()
        if jobs and now - self._asked >= self.poll_seconds:
            self._asked = now
            self._ask(jobs, now)
        for job, entry in jobs.items():
            since, job_state = self._gone.get(job, (now, None))
            if now - since > self.lag_seconds:
                bury(entry, job, job_state)
                ended.append(entry)
        self.entries = [entry for entry in self.entries if entry not in ended]
        return ended

    def _ask(self, jobs: dict[str, Entry], now: float) -> None:
        states = (self.job_states or slurm_state.job_states)(list(jobs))
        for job in jobs if states is not None else ():
            if states.get(job) in slurm_state.ACTIVE:
                self._gone.pop(job, None)
            else:
                self._gone.setdefault(job, (now, states.get(job)))
