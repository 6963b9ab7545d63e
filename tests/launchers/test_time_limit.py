"""A cell that needs more time than its job has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_slurm import CONFIG, wait_until

from launchers.sweep import launch
from tests.test_resume import exact_rows, journal_text, prepare
from zolab import compose, ledger
from zolab.run import run_dir

#: The shortest limit SLURM has; it looks at limits each 30 s.
MINUTE = {**CONFIG, "cpus": 1, "gpus": 0, "time_minutes": 1, "signal_seconds": 59}
#: The warning comes with the first look, long before the end.
TWO_MINUTES = {**MINUTE, "time_minutes": 2, "signal_seconds": 119}
LONG_STEPS = 80
LONG = (f"train.steps={LONG_STEPS}", f"train.eval_every={LONG_STEPS}")


def shown(job: str) -> str:
    """What the controller knows of a job."""
    asked = ["scontrol", "show", "job", job]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@pytest.mark.slurm
@pytest.mark.slow
def test_warned_of_its_limit_a_cell_saves_and_goes_on_in_a_fresh_job(
    slurm_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, whole = prepare(tmp_path / "runs"), prepare(tmp_path / "whole")
    run_dir(whole)
    done = launch([compose.read_cell(folder)], TWO_MINUTES, {}, function="paced_cells:run")
    assert done.exit_code == 0
    wait_until(lambda: ledger.state_of(folder) == "preempted", 110)
    status = ledger.read_status(folder)
    assert "stopped by SIGUSR2 after step" in status["error"]
    assert "TimeLimit=00:02:00" in shown(status["job_id"])
    # else each attempt is warned in its first half minute, and a slow machine gets nowhere in that
    more = ["scontrol", "update", f"JobId={status['job_id']}", "TimeLimit=9"]
    wait_until(lambda: subprocess.run(more, capture_output=True).returncode == 0)
    wait_until(lambda: ledger.state_of(folder) == "done", 240)
    result = ledger.read_json(folder / "result.json")
    assert result["num_attempts"] >= 2
    assert result["weights_hash"] == ledger.read_json(whole / "result.json")["weights_hash"]
    assert journal_text(folder) == journal_text(whole)
    assert exact_rows(folder) == exact_rows(whole)
    wait_until(lambda: "JobState=COMPLETED" in shown(status["job_id"]))
    restarts = f"Restarts={result['num_attempts'] - 1}"
    assert restarts in shown(status["job_id"]), "the same job, put back by itself"


@pytest.mark.slurm
@pytest.mark.slow
def test_ended_at_its_limit_without_a_warning_a_cell_goes_on_with_the_same_command(
    slurm_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens to no signal, so SLURM kills it; the journal has every step."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, whole = prepare(tmp_path / "runs", *LONG), prepare(tmp_path / "whole", *LONG)
    run_dir(whole)
    cells = [compose.read_cell(folder)]
    assert launch(cells, MINUTE, {}, function="paced_cells:run_deaf").exit_code == 0
    wait_until(lambda: ledger.read_status(folder).get("job_id"), 60)
    job = ledger.read_status(folder)["job_id"]
    wait_until(lambda: "JobState=TIMEOUT" in shown(job), 150)
    assert 2 <= len(journal_text(folder)) < LONG_STEPS
    again = launch(cells, {**MINUTE, "time_minutes": 9}, {})
    assert again.plan.counts == {"preempted": 1}
    wait_until(lambda: ledger.state_of(folder) == "done", 120)
    assert journal_text(folder) == journal_text(whole)
    assert exact_rows(folder) == exact_rows(whole)
