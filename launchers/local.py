"""Cells as processes of this machine, so many at a time; one that dies is one failed cell."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import signal
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths
from submitit.local.local import LocalExecutor, LocalJob

from launchers.display import Board, last_lines
from launchers.job import JOBS, RUN, Cell
from launchers.plan import Entry
from launchers.verdict import last_seen
from launchers.watch import Watch
from zolab import ledger
from zolab.process import SIGNALS_VARIABLE, STOP_SIGNALS

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 3.0
#: A cell that ends well but without a result was held by another process; it gets so many tries.
_MAX_TRIES = 3


class ProcessExecutor(LocalExecutor):
    """submitit's local executor without its controller: one process per cell, in its own session.

    The controller would cost a second interpreter per cell, hide the GPUs, and share the terminal's
    Ctrl-C with the cells.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._throttling = 0.0  # meant for schedulers
        self.environment: dict[str, str] = {}
        self.job_name = ""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        # the variables in which submitit's job side finds its folder and rank
        job = dict(JOB_ID=self.job_name, NTASKS="1", JOB_NUM_NODES="1")
        job.update(NODEID="0", GLOBALID="0", LOCALID="0")
        environment = {
            **os.environ,
            **self.environment,
            "SUBMITIT_EXECUTOR": "local",
            **{f"SUBMITIT_LOCAL_{name}": value for name, value in job.items()},
        }
        with open(JobPaths(self.folder, self.job_name).stdout, "ab") as log:
            process = subprocess.Popen(
                shlex.split(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return LocalJob(self.folder, self.job_name, tasks=[0], process=process)


class Slots:
    """Runs cells, at most `parallel` at a time, and follows those that other processes run.

    Args:
        entries: cells with action "run" or "wait"; their states are kept up to date.
        config: `parallel` and `threads` of the launcher config.
        board: what to tell about progress.
        function: what runs a cell, "module:function".
    """

    def __init__(
        self, entries: Sequence[Entry], config: Mapping[str, Any], board: Board, function: str = RUN
    ) -> None:
        self.todo = deque(entry for entry in entries if entry.action == "run")
        self.watch = Watch(entry for entry in entries if entry.action == "wait")
        self.board = board
        self.function = function
        self.threads = int(config.get("threads") or 1)
        self.signals = ",".join(config.get("stop_signals") or STOP_SIGNALS)
        self.gpus = visible_gpus()
        self.parallel = parallel_cells(config)
        self.active: dict[int, tuple[Entry, LocalJob[Any]]] = {}
        self._looked = 0.0

    def run(self) -> None:
        """Return when no cell is left that runs or could be run.

        Whatever interrupts it (KeyboardInterrupt) first ends the processes it started; their cells
        are `preempted` and the same sweep continues them.
        """
        try:
            while self.todo or self.active or self.watch.entries:
                self._fill()
                time.sleep(_POLL_SECONDS)
                self._collect()
                self._follow()
                self.board.tick()
        finally:
            self._end_all()

    def _fill(self) -> None:
        free = (slot for slot in range(self.parallel) if slot not in self.active)
        for slot in list(free)[: len(self.todo)]:
            entry = self.todo.popleft()
            entry.state = ledger.state_of(entry.run_dir) if entry.run_dir.is_dir() else "lost"
            if entry.state == "running":  # of another sweep that shares it
                self.watch.add(entry)
                continue
            if entry.state == "done":
                self.board.ended(entry)
                continue
            entry.tries += 1
            executor = ProcessExecutor(entry.run_dir.parent / JOBS)
            executor.job_name = f"{entry.run_id}-{uuid.uuid4().hex[:6]}"
            executor.environment = self._environment(slot)
            job = executor.submit(Cell(entry.run_dir, self.function))
            self.active[slot] = (entry, job)
            entry.state = "running"
            self.board.started(entry)

    def _environment(self, slot: int) -> dict[str, str]:
        """Set before torch is loaded: threads that spin while they wait starve the other cells."""
        threads = str(self.threads)
        names = ("OMP", "MKL", "OPENBLAS", "RAYON")
        variables = {f"{name}_NUM_THREADS": threads for name in names}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return {**variables, "OMP_WAIT_POLICY": "passive", SIGNALS_VARIABLE: self.signals}

    def _collect(self) -> None:
        for slot, (entry, job) in list(self.active.items()):
            code = job._process.poll()
            if code is None:
                continue
            del self.active[slot]
            self._judge(entry, job, code)

    def _judge(self, entry: Entry, job: LocalJob[Any], code: int) -> None:
        log = job.paths.stdout
        for path in (job.paths.submitted_pickle, job.paths.result_pickle):
            path.unlink(missing_ok=True)
        entry.state = ledger.state_of(entry.run_dir) if entry.run_dir.is_dir() else "lost"
        if entry.state == "running":
            self.watch.add(entry)
            return
        if entry.state in ("planned", "submitted", "lost"):
            if code == 0 and entry.tries < _MAX_TRIES:
                self.todo.append(entry)
                return
            self._fail(entry, code, log)
        entry.error = ledger.read_status(entry.run_dir).get("error") or entry.error
        if entry.state == "done" and not log.stat().st_size:
            log.unlink()
        self.board.ended(entry)

    def _fail(self, entry: Entry, code: int, log: Path) -> None:
        """Put on record what the process itself could not.

        A cell that was asked to end before it could listen is continued by the next sweep. SIGKILL
        means that memory ran out, or that somebody meant it: trying again is for the user to say.
        """
        name = signal.Signals(-code).name if code < 0 else ""
        entry.state = "preempted" if name in STOP_SIGNALS else "failed"
        with contextlib.suppress(OSError):
            ledger.write_status(entry.run_dir, entry.state, log=str(log))
        if name:
            hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
            entry.error = f"killed by {name}{hint}{last_seen(entry)}"
        elif code == 0:
            entry.error = "ended without a result"
        else:
            entry.error = (last_lines(entry.run_dir, 1) or [f"ended with status {code}"])[-1]
        with contextlib.suppress(OSError):
            ledger.write_status(entry.run_dir, entry.state, error=entry.error)

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < 1.0:
            return
        self._looked = now
        for entry in self.watch.poll():
            if entry.state in ("done", "failed", "cancelled") or entry.tries >= _MAX_TRIES:
                self.board.ended(entry)
            else:  # its process died or gave up: it is ours now
                entry.state = "planned"
                self.todo.append(entry)

    def _end_all(self) -> None:
        """End all processes that still run, politely first, whatever else the user presses."""
        if not self.active:
            return
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for _, job in self.active.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(job._process.pid, sign)
            deadline = time.monotonic() + _GRACE_SECONDS
            for _, job in self.active.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job._process.wait(max(0.0, deadline - time.monotonic()))
        for entry, job in self.active.values():
            job.paths.submitted_pickle.unlink(missing_ok=True)
            entry.state = ledger.state_of(entry.run_dir) if entry.run_dir.is_dir() else "lost"
            if entry.state not in ("done", "running"):
                entry.state = "preempted"
                with contextlib.suppress(OSError):
                    ledger.write_status(entry.run_dir, "preempted")
        self.active.clear()
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)


def parallel_cells(config: Mapping[str, Any]) -> int:
    """Cells at a time: what the config says, else one per GPU, else as many as the cores carry."""
    if config.get("parallel"):
        return int(config["parallel"])
    if gpus := visible_gpus():
        return len(gpus)
    return max(1, len(os.sched_getaffinity(0)) // int(config.get("threads") or 1))


def visible_gpus() -> list[str]:
    """Names of the GPUs a process may use, empty without; found without loading torch."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name and name != "-1"]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]
