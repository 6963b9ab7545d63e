"""What a launched process does: run the one cell whose directory it was given."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from launchers import slurm_state
from zolab import ledger
from zolab.process import Preempted, describe, stop_signals_caught

#: "module:function" that takes a run directory and runs or resumes its cell to the end.
RUN = "zolab.run:run_dir"
#: Folder under run_root for submissions and for what the processes print.
JOBS = ".jobs"
#: Exit status of a local process that was asked to stop, as a shell gives it for SIGTERM.
STOPPED = 143
#: How long a job that saved waits for its end before it asks the scheduler again (seconds).
_ASK_AGAIN_SECONDS = 60.0


class Cell:
    """The callable a launcher hands over: it holds a path and a name, never a configuration.

    So a job that waited for days, or was requeued, reads the run directory as it is then.

    Args:
        run_dir: directory of the cell.
        function: what runs it, as "module:function".
    """

    def __init__(self, run_dir: str | Path, function: str = RUN) -> None:
        self.run_dir = str(Path(run_dir).absolute())
        self.function = function

    def __call__(self) -> str:
        """Run the cell; "done", or why this process left it to another one.

        Raises:
            Exception: whatever the cell raised; status.json then says `failed`.
            SystemExit: it was asked to stop.
        """
        # With torch loaded, looking for garbage in a process that ends takes more than a second.
        atexit.register(gc.freeze)
        _undo_foreign_handlers()
        _publish_job()
        in_slurm = bool(os.environ.get(ledger.JOB_ID_VARIABLE))
        with stop_signals_caught():
            try:
                module, name = self.function.split(":")
                getattr(importlib.import_module(module), name)(self.run_dir)
            except (ledger.Busy, ledger.Fenced) as reason:
                print(reason, file=sys.stderr)
                return "held by another process"
            except Preempted as stop:
                print(stop, file=sys.stderr, flush=True)
                if in_slurm and os.environ.get("SLURM_PROCID", "0") == "0":
                    requeue_and_wait(os.environ[ledger.JOB_ID_VARIABLE])
                elif in_slurm:  # the first process of the cell decides about the job
                    time.sleep(_ASK_AGAIN_SECONDS)
                raise SystemExit(STOPPED) from None
            except Exception as error:
                _record_failure(self.run_dir, error)
                raise
        return "done"


def job_id() -> str | None:
    """Id of the SLURM job this process belongs to, None outside of one.

    Members of an array are called `A_i`: the raw id of one member equals the id of the whole array.
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue_and_wait(job: str) -> None:
    """Put this job back into the queue if nobody else decides about it, then wait for its end.

    A job that still counts as RUNNING was warned of its time limit, or of a preemption yet to
    come: it goes back by its own wish. In any other state (COMPLETING after a preemption or a
    scancel) the scheduler has decided; a requeue would undo the user's scancel. Ending early inside
    the grace period would finish the job for good, so this waits to be killed.
    """
    asked = False
    while True:
        state = slurm_state.state_now(job)
        if state == "RUNNING" and not asked:
            asked = slurm_state.requeue(job)
        print(f"job {job} is {state}; waiting for its end", file=sys.stderr, flush=True)
        until = time.monotonic() + _ASK_AGAIN_SECONDS
        while time.monotonic() < until:
            time.sleep(1.0)
        asked = False


def _publish_job() -> None:
    """Tell the ledger which job and log file this is."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ[ledger.JOB_ID_VARIABLE] = ""
    if "SUBMITIT_FOLDER" in os.environ:
        import submitit

        os.environ[ledger.LOG_VARIABLE] = str(submitit.JobEnvironment().paths.stdout)


def _undo_foreign_handlers() -> None:
    """Undo submitit's handlers, which raise in the middle of a step and call that a failure."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return  # those there are ours
    with contextlib.suppress(ValueError):  # not the main thread: nothing was installed either
        for number in (signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _record_failure(run_dir: str, error: Exception) -> None:
    """Put the failure on record if it came before the runner could."""
    if ledger.state_of(run_dir) in ("failed", "done", "running"):
        return
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        log = os.environ.get(ledger.LOG_VARIABLE)
        ledger.write_status(run_dir, "failed", error=describe(error), log=log)
