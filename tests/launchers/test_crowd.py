"""Many launchers, GPUs and waiting on a real SLURM."""

from __future__ import annotations

import io
import multiprocessing
import time

import pytest
from test_slurm import CONFIG, quick, wait_done  # noqa: F401

from launchers.submission import Jobs
from launchers.sweep import launch
from zolab import ledger

pytestmark = pytest.mark.slurm
FORK = multiprocessing.get_context("fork")
LAUNCHER = {**CONFIG, "cpus": 1, "gpus": 0}


def start_sweep(cells, store, begin) -> None:
    begin.wait()
    launch(cells, LAUNCHER, {}, function="fake_cells:run", store=store, out=io.StringIO())


def test_eight_launchers_at_once_queue_and_start_each_cell_once(slurm_cluster, make_cell, sweep):
    from conftest import STORE

    cells = [make_cell(seed) for seed in range(40)]
    begin = FORK.Barrier(8)
    people = [FORK.Process(target=start_sweep, args=(cells, STORE, begin)) for _ in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert [person.exitcode for person in people] == [0] * 8
    entries = sweep(cells, LAUNCHER).plan.entries
    jobs = {entry.run_dir.parent / ".jobs" for entry in entries}.pop()
    queued = [name for p in jobs.glob("*.json") for name in ledger.read_json(p)["cells"]]
    assert sorted(queued) == sorted(entry.run_id for entry in entries)
    assert not (jobs / "claim").exists()
    wait_done(entries, 180)
    assert all(len(list((e.run_dir / "attempts").iterdir())) == 1 for e in entries)


def test_cells_see_the_gpus_they_asked_for_and_wait_for_them(slurm_cluster, make_cell, sweep):
    """Nine one-GPU cells on four nodes of two: never two on a GPU, the ninth waits."""
    cells = [make_cell(seed, seconds=1.5) for seed in range(9)]
    entries = sweep(cells, {**LAUNCHER, "gpus": 1}).plan.entries
    pair = sweep([make_cell(99)], {**LAUNCHER, "gpus": 2}).plan.entries
    wait_done(entries + pair, 90)
    found = [ledger.read_json(e.run_dir / "result.json") for e in entries]
    assert {r["gpus"] for r in found} == {"0", "1"}
    assert ledger.read_json(pair[0].run_dir / "result.json")["gpus"] == "0,1"
    places = {}
    for result in sorted(found, key=lambda r: r["began"]):
        place = (result["node"], result["gpus"])
        assert result["began"] >= places.get(place, 0.0), f"two cells at once on {place}"
        places[place] = result["ended"]
    assert len(places) <= 8


def test_a_sweep_costs_little_more_than_its_cells(slurm_cluster, make_cell, sweep, quick):  # noqa: F811
    """Two rounds of four cells: at most 2 s more each, a tenth of a cell of 20 s."""
    cells = [make_cell(seed, seconds=2.0) for seed in range(8)]
    begin = time.monotonic()
    outcome = sweep(cells, {**LAUNCHER, "array_parallelism": 4}, wait=True)
    wall = time.monotonic() - begin
    assert outcome.exit_code == 0
    found = [ledger.read_json(e.run_dir / "result.json") for e in outcome.plan.entries]
    alone = sum(r["ended"] - r["started"] for r in found) / 4
    assert wall - alone <= 2 * 2.0 + 1.0, "a look a second is part of waiting"
    assert Jobs().of(outcome.plan.entries[0]).endswith("_0")
