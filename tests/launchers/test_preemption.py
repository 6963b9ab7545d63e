"""How jobs end on a real SLURM, and that no step is lost or taken twice whatever the way."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from fake_cells import steps_of
from test_slurm import CONFIG, wait_until

from launchers.submission import Jobs
from zolab import ledger

SECONDS = 3.0
STEPS = list(range(1, 31))
LAUNCHER = {**CONFIG, "cpus": 2, "gpus": 0}

pytestmark = pytest.mark.slurm


def tell(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def attempts(entry) -> int:
    return len(list((entry.run_dir / "attempts").iterdir()))


def done(entry) -> bool:
    return ledger.state_of(entry.run_dir) == "done"


def begun(entry) -> bool:
    return len(steps_of(entry.run_dir)) >= 3


def test_every_way_a_job_can_be_ended(slurm_cluster, make_cell, sweep):
    """At once: both stop signals, a scancel, SIGKILL from nowhere, a node that is taken down."""
    cells = [make_cell(seed, "steps", SECONDS) for seed in range(6)]
    entries = sweep(cells, LAUNCHER).plan.entries
    usr2, term, cancelled, killed, downed, quiet = entries
    wait_until(lambda: all(begun(e) for e in entries))
    jobs = {e.run_id: Jobs().of(e) for e in entries}
    tell("scancel", "--signal=USR2", jobs[usr2.run_id])
    tell("scancel", "--signal=TERM", jobs[term.run_id])
    tell("scancel", jobs[cancelled.run_id])
    os.kill(ledger.read_heartbeat(killed.run_dir)["pid"], signal.SIGKILL)
    where = ["squeue", "-h", "-o", "%N", "-j", jobs[downed.run_id]]
    node = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    tell("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    # it comes back by itself (ReturnToService=2), or is told to if it has not yet
    resume = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
    subprocess.run(resume, capture_output=True)
    wait_until(lambda: all(done(e) for e in (usr2, term, downed, quiet)), 60)
    for entry in (usr2, term, downed, quiet):
        assert steps_of(entry.run_dir) == STEPS
    assert (attempts(usr2), attempts(term)) == (2, 2)
    assert attempts(downed) == 2, "a downed node's job is put back by SLURM"
    again = sweep(cells, LAUNCHER, dry_run=True).plan.entries
    states = {e.cell["seed"]: e.state for e in again}
    assert states == {0: "done", 1: "done", 2: "cancelled", 3: "failed", 4: "done", 5: "done"}
    assert "SIGKILL not sent by SLURM: out of memory?; last seen with " in again[3].error
    assert steps_of(cancelled.run_dir) == STEPS[: len(steps_of(cancelled.run_dir))]
    continued = sweep(cells, LAUNCHER, retry="all").plan.entries
    wait_until(lambda: all(done(e) for e in continued), 60)
    assert steps_of(cancelled.run_dir) == steps_of(killed.run_dir) == STEPS


@pytest.mark.parametrize("grace", [0, 6])
def test_preempted_by_a_job_of_higher_priority(slurm_cluster, make_cell, sweep, grace):
    tell("scontrol", "update", "PartitionName=preempt", f"GraceTime={grace}")
    cell = make_cell(grace, "steps", SECONDS)
    (entry,) = sweep([cell], {**LAUNCHER, "partition": "preempt"}).plan.entries
    wait_until(lambda: begun(entry))
    tell("sbatch", "-p", "main", "-N4", "--exclusive", "-t1", "-o/dev/null", "--wrap", "sleep 1")
    wait_until(lambda: ledger.read_status(entry.run_dir)["state"] == "preempted")
    assert "SIGTERM" in ledger.read_status(entry.run_dir)["error"]
    wait_until(lambda: done(entry), 90)
    assert steps_of(entry.run_dir) == STEPS
    assert attempts(entry) == 2
