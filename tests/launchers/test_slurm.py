"""Real submissions to a private SLURM; the questions asked of it also against canned answers."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from launchers import slurm, slurm_state, watch
from launchers.plan import Entry
from launchers.submission import SETTLING_SECONDS, Jobs, new_record, wait_for_orphans
from zolab import ledger
from zolab.errors import UserError

CONFIG = {"kind": "slurm", "cpus": 4, "time_minutes": 5, "array_parallelism": 256, "setup": []}


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def wait_done(entries, seconds: float = 30.0) -> None:
    """Wait for cells that must all end well; one that ended badly is named at once, with why."""
    deadline = time.monotonic() + seconds
    while left := [e for e in entries if ledger.state_of(e.run_dir) != "done"]:
        told = {e.run_dir.name: ledger.read_status(e.run_dir) for e in left}
        assert not [t for t in told.values() if t.get("state") == "failed"], told
        assert time.monotonic() < deadline, f"waited too long for {told}"
        time.sleep(0.1)


@pytest.fixture
def quick(monkeypatch):
    """Ask SLURM every half second instead of every half minute."""
    monkeypatch.setattr(watch.Watch.__init__, "__defaults__", ((), 0.5, 0.5, None))
    monkeypatch.setattr(slurm.follow, "__defaults__", (0.5,))


@pytest.mark.slurm
def test_array_of_four_gives_results_and_a_mapping(slurm_cluster, make_cell, sweep):
    cells = [make_cell(seed) for seed in range(4)]
    start = time.monotonic()
    outcome = sweep(cells, CONFIG)
    assert time.monotonic() - start < 5, "the launcher does not wait"
    assert outcome.exit_code == 0
    entries = outcome.plan.entries
    mapped = [Jobs().of(e) for e in entries]
    array = mapped[0].partition("_")[0]
    assert mapped == [f"{array}_{i}" for i in range(4)]
    assert f"submitted 4 cells as SLURM job {array}, output in " in outcome.text
    wait_done(entries)
    found = [ledger.read_json(e.run_dir / "result.json") for e in entries]
    assert [r["seed"] for r in found] == [0, 1, 2, 3]
    status = ledger.read_status(entries[2].run_dir)
    assert (status["state"], status["job_id"]) == ("done", mapped[2])
    with open(status["log"]) as file:
        text = file.read()
    assert f"cell {entries[2].run_id} says hello" in text
    assert "OMP_NUM_THREADS=4\nOMP_WAIT_POLICY=passive\nCUDA_VISIBLE_DEVICES=" in text
    again = sweep(cells, CONFIG)
    assert again.text.startswith("4 cells: 4 done, 0 to run\n")


@pytest.mark.slurm
def test_waiting_reports_cells_that_die_without_hanging(slurm_cluster, make_cell, sweep, quick):
    kinds = ["work", "raise", "kill"]
    outcome = sweep([make_cell(seed, do) for seed, do in enumerate(kinds)], CONFIG, wait=True)
    assert [e.state for e in outcome.plan.entries] == ["done", "failed", "failed"]
    assert outcome.exit_code == 1
    killed = outcome.plan.entries[2]
    assert "ended without a result (FAILED, SIGKILL not sent by SLURM: out of mem" in killed.error
    assert "MiB; last words: " in killed.error
    assert ledger.read_status(killed.run_dir)["state"] == "failed"
    table = outcome.text.partition("2 of 3 cells have no result:")[2]
    assert "ValueError: told to raise" in table
    assert "Killed" in table


@pytest.mark.slurm
def test_queued_cells_are_not_submitted_twice(slurm_cluster, make_cell, sweep, quick):
    """One cell at a time: the second one waits; then both are cancelled."""
    cells = [make_cell(seed, seconds=60) for seed in range(2)]
    entries = sweep(cells, {**CONFIG, "array_parallelism": 1}).plan.entries
    wait_until(lambda: ledger.state_of(entries[0].run_dir) == "running")
    again = sweep([*cells, make_cell(2)], CONFIG, dry_run=True)
    assert again.text.startswith("3 cells: 1 running, 1 submitted, 1 to run\n")
    job = ledger.read_status(entries[0].run_dir)["job_id"].partition("_")[0]
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: slurm_state.job_states([f"{job}_0"]).get(f"{job}_0") == "CANCELLED")
    last = sweep(cells, CONFIG, wait=True)
    assert [e.state for e in last.plan.entries] == ["cancelled", "cancelled"]
    assert (last.exit_code, last.plan.to("run")) == (1, [])
    assert ledger.read_status(entries[1].run_dir)["state"] == "cancelled"
    states = slurm_state.job_states([f"{job}_0", f"{job}_1", "999999_0"])
    assert states == {f"{job}_0": "CANCELLED", f"{job}_1": "CANCELLED"}


@pytest.mark.slurm
def test_refused_submission_leaves_cells_planned(slurm_cluster, make_cell, sweep, tmp_path):
    cells = [make_cell(seed) for seed in range(2)]
    with pytest.raises(UserError, match=r"SLURM refused 2 of 2 cells: .*nvalid partition"):
        sweep(cells, {**CONFIG, "partition": "nowhere"})
    assert [e.state for e in sweep(cells, CONFIG, dry_run=True).plan.entries] == ["planned"] * 2
    assert list((tmp_path / "runs" / ".jobs").iterdir()) == []
    error = ledger.read_status(next((tmp_path / "runs").glob("[0-9a-f]*")))["error"]
    assert "nvalid partition" in error


@pytest.mark.slurm
def test_arrays_are_cut_to_what_the_cluster_allows(
    slurm_cluster, make_cell, sweep, monkeypatch, quick
):
    assert slurm_state.max_array_size() == 20000
    assert slurm_state.has_gpus()
    assert slurm_state.has_gpus("preempt")
    monkeypatch.setattr(slurm_state, "max_array_size", lambda: 2)
    outcome = sweep([make_cell(seed) for seed in range(3)], CONFIG, wait=True)
    assert outcome.exit_code == 0
    jobs = [Jobs().of(e) for e in outcome.plan.entries]
    assert [job.partition("_")[2] for job in jobs] == ["0", "1", "0"]


def test_as_shipped_nothing_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(slurm_state, "has_gpus", lambda partition=None: True)
    asked = slurm.parameters(CONFIG)
    assert not {"partition", "account", "qos", "gres", "mem"} & set(asked)
    assert (asked["gpus_per_node"], asked["cpus_per_task"]) == (1, 4)
    monkeypatch.setattr(slurm_state, "has_gpus", lambda partition=None: False)
    assert "gpus_per_node" not in slurm.parameters(CONFIG)
    site = {**CONFIG, "partition": "a100", "gres": "gpu:a100:2", "memory_gb": 1.5, "gpus": None}
    asked = slurm.parameters({**site, "setup": ["module load cuda"]})
    assert (asked["partition"], asked["gres"], asked["mem"]) == ("a100", "gpu:a100:2", "1536MB")
    assert "gpus_per_node" not in asked
    assert asked["setup"][-1] == "module load cuda"


def test_without_slurm_the_sweep_is_refused_before_anything(
    make_cell, sweep, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="commands of SLURM"):
        sweep([make_cell()], CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gres", "expected"),
    [("(null)\n", False), ("gpu:2\n", True), ("gpu:a100:4(S:0-1)\n(null)\n", True),
     ("craynetwork:4,gpu:8\n", True), ("shmem:gpu0\n", False)],
)  # fmt: skip
def test_gpus_of_a_cluster(monkeypatch, gres, expected):
    monkeypatch.setattr(slurm_state, "_call", lambda command: gres)
    assert slurm_state.has_gpus() is expected


@pytest.fixture
def waiting(tmp_path):
    """A cell that was submitted as job 9_0."""
    ledger.write_status(tmp_path, "submitted", job_id="9_0")
    return Entry("0" * 16, tmp_path, {}, "", state="submitted")


@pytest.mark.parametrize(
    ("answer", "state", "action_needed"),
    [({"9_0": "PENDING"}, "submitted", False), ({"9_0": "COMPLETING"}, "submitted", False),
     ({"9_0": "FAILED"}, "failed", True), ({"9_0": "OUT_OF_MEMORY"}, "failed", True),
     ({"9_0": "CANCELLED"}, "cancelled", True), ({"9_0": "TIMEOUT"}, "preempted", True),
     ({"9_0": "NODE_FAIL"}, "preempted", True), ({"9_0": "COMPLETED"}, "lost", True),
     ({}, "lost", True), (None, "submitted", False)],
)  # fmt: skip
def test_what_the_end_of_a_job_means(waiting, answer, state, action_needed):
    watch.settle([waiting], lambda jobs: answer)
    assert waiting.state == state
    assert (ledger.read_status(waiting.run_dir)["state"] == state) or not action_needed


def test_a_watched_job_gets_time_for_its_result_to_arrive(waiting):
    follower = watch.Watch([waiting], 0.0, 0.3, lambda jobs: {"9_0": "COMPLETED"})
    assert follower.poll() == []
    ledger.write_json(waiting.run_dir / "result.json", {})
    assert follower.poll() == [waiting]
    assert (waiting.state, follower.entries) == ("done", [])


def test_a_watched_job_that_is_gone_is_given_up(waiting):
    asked = []
    follower = watch.Watch([waiting], 0.0, 0.2, lambda jobs: asked.append(jobs) or {})
    assert follower.poll() == []
    time.sleep(0.3)
    assert follower.poll() == [waiting]
    assert waiting.state == "lost"
    assert asked[0] == ["9_0"]


def test_a_watch_goes_on_when_slurm_does_not_answer(waiting):
    follower = watch.Watch([waiting], 0.0, 0.0, lambda jobs: None)
    for _ in range(3):
        assert follower.poll() == []


def test_a_submission_that_never_got_a_job_is_planned_again(waiting):
    ledger.write_status(waiting.run_dir, "submitted", job_id=None)
    watch.settle([waiting], lambda jobs: {})
    assert waiting.state == "planned"


def test_a_dead_launchers_cells_that_settle_after_the_plan_are_planned_again(waiting, monkeypatch):
    """They count as submitted in a plan made a moment too early; the array never came."""
    monkeypatch.setattr(slurm_state, "array_named", lambda name: None)
    jobs = waiting.run_dir.parent / ".jobs"
    jobs.mkdir(exist_ok=True)
    token = new_record(jobs, [waiting], {})
    ledger.write_status(waiting.run_dir, "submitted", job_id=None, submission=[token, 0])
    written = time.time() - SETTLING_SECONDS - 1.0
    os.utime(waiting.run_dir / "status.json", (written, written))
    begin = time.monotonic()
    assert wait_for_orphans([waiting]), "the plan is to be made anew"
    assert time.monotonic() - begin < 1.0
    watch.settle([waiting], lambda jobs: {})
    assert waiting.state == "planned"
