"""What a SIGKILL means for a cell that could not say anything itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers import slurm_state, verdict
from launchers.plan import Entry
from zolab import ledger

KILLED = "srun: error: z1: task 0: Killed\nsrun: Force Terminated StepId=26.0\n"
CANCELLED = "slurmstepd-z1: error: *** STEP 26.0 ON z1 CANCELLED AT 2026-01-02T03:04:05"


@pytest.mark.parametrize(
    ("log", "state", "said"),
    [
        (f"step 20\n{KILLED}", "failed", "SIGKILL not sent by SLURM: out of memory?"),
        (f"step 20\n{CANCELLED} ***\n{KILLED}", "preempted", "its step was cancelled"),
        # of an earlier attempt, after which the cell went on
        (f"{CANCELLED} ***\n{KILLED}step 20\n{KILLED}", "failed", "SIGKILL not sent by SLURM"),
        (f"{CANCELLED} DUE TO PREEMPTION ***\n{KILLED}{KILLED}", "failed", "SIGKILL not sent"),
    ],
)
def test_a_sigkill_is_out_of_memory_unless_slurm_sent_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, state: str, said: str
) -> None:
    monkeypatch.setattr(slurm_state, "exit_status", lambda job: (137, 0))
    folder = tmp_path / "cell"
    folder.mkdir()
    (tmp_path / "log").write_text(log)
    ledger.write_status(folder, "running", attempt=1, log=str(tmp_path / "log"))
    entry = Entry("cell", folder, {}, "", state="lost")
    verdict.bury(entry, "1_22", "FAILED")
    assert entry.state == state == ledger.read_status(folder)["state"]
    assert said in ledger.read_status(folder)["error"]
