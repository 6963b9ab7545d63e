"""What a launched process does: run the one cell whose directory it was given."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path

from zolab import ledger

#: "module:function" that takes a run directory and runs or resumes its cell to the end.
RUN = "zolab.run:run_dir"
#: Folder under run_root for what submitit writes and for what the processes print.
JOBS = ".jobs"


class Cell:
    """The callable a launcher pickles: it holds a path and a name, never a configuration.

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
        """
        _set_signals()
        _publish_job()
        try:
            module, name = self.function.split(":")
            getattr(importlib.import_module(module), name)(self.run_dir)
        except (ledger.Busy, ledger.Fenced) as reason:
            print(reason, file=sys.stderr)
            return "held by another process"
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


def _publish_job() -> None:
    """Tell the ledger which job and log file this is."""
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    os.environ[ledger.JOB_ID_VARIABLE] = (job_id() or "") if in_slurm else ""
    if "SUBMITIT_FOLDER" in os.environ:
        import submitit

        os.environ[ledger.LOG_VARIABLE] = str(submitit.JobEnvironment().paths.stdout)


def _set_signals() -> None:
    """Undo submitit's handlers, which raise in the middle of a step and call that a failure.

    A cell can be killed between any two instructions and resumes from its journal, so a local one
    simply ends. Under SLURM it waits for the kill: a job that ends early in the grace period counts
    as finished and is not requeued.
    """
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    with contextlib.suppress(ValueError):  # not the main thread: nothing was installed either
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if in_slurm else signal.SIG_DFL)


def _record_failure(run_dir: str, error: Exception) -> None:
    """Put the failure on record if it came before the runner could."""
    if ledger.state_of(run_dir) in ("failed", "done", "running"):
        return
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        log = os.environ.get(ledger.LOG_VARIABLE)
        ledger.write_status(run_dir, "failed", error=text, log=log)
