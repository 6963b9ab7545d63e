"""One cell on several processes: the same weights on each, and the trajectory of one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_resume import exact_rows, journal_text, prepare
from zolab import ledger, process
from zolab.errors import UserError
from zolab.journal import read_journal
from zolab.parallel.share import SharedPlacement, share_of
from zolab.run import run_dir
from zolab.tracking.local import read_rows

CELL = ("train.steps=20", "train.agree_every=5", "train.eval_every=10")
FORK = multiprocessing.get_context("fork")  # what is imported here need not be again


def run_rank(folder: Path, rank: int, size: int, port: int, told: Any) -> None:
    """One process of a cell, as torchrun would start it."""
    common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()})
    with process.stop_signals_caught():
        try:
            told.send(run_dir(folder))
        except BaseException as error:
            told.send(f"{type(error).__name__}: {error}")


def start(folder: Path, size: int) -> list[tuple[Any, Any]]:
    """The processes of one cell, each with the end of a pipe that tells how it went."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = []
    for rank in range(size):
        here, there = FORK.Pipe(duplex=False)
        worker = FORK.Process(target=run_rank, args=(folder, rank, size, port, there))
        worker.start()
        out.append((worker, here))
    return out


def finish(processes: list[tuple[Any, Any]]) -> list[Any]:
    told = []
    for worker, pipe in processes:
        assert pipe.poll(240)
        told.append(pipe.recv())
        worker.join()
    return told


def on_ranks(folder: Path, size: int) -> dict[str, Any]:
    result, *others = finish(start(folder, size))
    assert others == [{}] * (size - 1)
    return result


@pytest.mark.parametrize("size", [2, 4])
def test_data_parallel_equals_one_process(tmp_path: Path, size: int) -> None:
    """20 steps: losses within 1e-5. The ranks compare their weights every 5 steps."""
    alone = prepare(tmp_path / "alone", *CELL)
    shared = prepare(tmp_path / "shared", *CELL)
    expected, got = run_dir(alone), on_ranks(shared, size)
    assert got["ranks"] == size
    assert alone.name == shared.name
    ours, theirs = read_journal(alone), read_journal(shared)
    assert len(theirs) == 20
    for a, b in zip(ours, theirs, strict=True):
        assert b.losses == pytest.approx(a.losses, abs=1e-5)
    assert got["final"]["dev/loss"] == pytest.approx(expected["final"]["dev/loss"], abs=1e-5)
    sent = [row["perf/payload_bytes"] for row in read_rows(shared / "metrics.jsonl")[1:]]
    assert max(sent) <= 100
    assert [p.name for p in shared.glob(".*")] == []


def test_data_parallel_streams_its_weights_too(tmp_path: Path) -> None:
    """Two ranks, each with its layers in CPU memory and on disk: the bits of two in memory."""
    short = ("train.steps=8", "train.agree_every=4", "train.eval_every=4")
    memory = prepare(tmp_path / "memory", *short, "optimizer/placement=paired")
    offload = ("optimizer/placement=offload", "optimizer.placement.tier=cpu*1+disk")
    streamed = prepare(tmp_path / "streamed", *short, *offload)
    expected, got = on_ranks(memory, 2), on_ranks(streamed, 2)
    assert got["ranks"] == 2
    assert got["weights_hash"] == expected["weights_hash"]
    assert journal_text(streamed) == journal_text(memory)


@pytest.mark.parametrize(("share", "probes"), [("probe", 2), ("sign", 1)])
def test_probes_and_signs_shared_out(tmp_path: Path, share: str, probes: int) -> None:
    """Each rank sees the whole batch: what it evaluates is what one process would."""
    options = (*CELL, f"train.share={share}", "optimizer/placement=per_layer")
    options += (f"optimizer.estimator.num_probes={probes}",)
    alone, shared = (prepare(tmp_path / name, *options) for name in ("alone", "shared"))
    expected, got = run_dir(alone), on_ranks(shared, 2)
    assert got["weights_hash"] == expected["weights_hash"]
    assert exact_rows(shared) == exact_rows(alone)
    sent = [row["perf/payload_bytes"] for row in read_rows(shared / "metrics.jsonl")[1:]]
    assert max(sent) <= 100


def test_a_lost_rank_ends_the_cell_and_others_go_on(tmp_path: Path) -> None:
    """Begun on 2 processes, one is killed; continued on 3, stopped; finished on one."""
    options = ("train.steps=200", "train.eval_every=100", "train.agree_every=7")
    folder = prepare(tmp_path, *options)
    first = start(folder, 2)
    _wait_for_steps(folder, 5)
    first[1][0].kill()
    (said,) = finish(first[:1])
    assert said.startswith("LostRank: a process of this cell is gone")
    status = ledger.read_status(folder)
    assert (status["state"], ledger.find_holder(folder)) == ("preempted", None)
    done = len(read_journal(folder))
    second = start(folder, 3)
    _wait_for_steps(folder, done + 5)
    os.kill(second[2][0].pid, signal.SIGTERM)
    said = finish(second)
    assert said[2].startswith("Preempted: stopped by SIGTERM after step")
    assert said[0].startswith("Preempted: stopped by a signal to another process after step")
    done = len(read_journal(folder))
    assert done < 200
    assert run_dir(folder)["steps"] == 200
    rows = read_journal(folder)
    assert [row.step for row in rows] == list(range(1, 201))


def _wait_for_steps(folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_journal(folder)) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.05)


class FakeRanks:
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_shares_adjoin_and_differ_by_one_at_most() -> None:
    items = list(range(11))
    parts = [share_of(items, FakeRanks(rank, 4)) for rank in range(4)]
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert [item for part in parts for item in part] == items


def test_a_walk_cannot_be_shared_out() -> None:
    from zolab.optim.placements import InPlace

    with pytest.raises(UserError, match="in_place leaves rounding"):
        SharedPlacement(InPlace(), FakeRanks(0, 2), "probe")


def test_a_first_order_method_is_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "optimizer=adamw", "train.steps=2")
    told = finish(start(folder, 2))
    assert "only forward-only methods run on several processes" in told[0]
    assert told[1].startswith("LostRank")
