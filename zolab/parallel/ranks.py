"""The processes of one cell, and the numbers that go between them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zolab.ledger import JOB_ID_VARIABLE, RESTART_VARIABLE, read_json, write_json
from zolab.process import Preempted

#: A rank may wait so long for the others: the first one evaluates alone meanwhile.
_PATIENCE = timedelta(hours=6)
#: All tasks of a job start within this, or the job is broken (seconds).
_GATHERING_SECONDS = 600.0


class LostRank(Preempted):
    """A process of this cell is gone; what is on record is whole, and the cell can go on."""


class Ranks:
    """This process among those of its cell. All numbers travel as float64, in rank order.

    Attributes:
        rank: number of this process; 0 leads: it alone holds the claim and writes files.
        size: how many there are.
        payload_bytes: what this process has sent so far.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.payload_bytes = 0
        self._device = "cuda" if dist.get_backend() == "nccl" else "cpu"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def exchange(self, numbers: Sequence[float]) -> list[list[float]]:
        """What each rank gave, by rank; all must give equally many.

        Raises:
            LostRank: a process is gone.
        """
        mine = torch.tensor(list(numbers), dtype=torch.float64, device=self._device)
        out = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(out, mine)
        except RuntimeError as error:
            raise LostRank(f"a process of this cell is gone ({_first_line(error)})") from error
        self.payload_bytes += 8 * len(mine)
        return [row.tolist() for row in out]

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, added in their order, so that each rank has the same bits."""
        total = [0.0] * len(numbers)
        for row in self.exchange(numbers):
            total = [a + b for a, b in zip(total, row, strict=True)]
        return total

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return any(row[0] for row in self.exchange([float(flag)]))

    def from_leader(self, value: Any = None) -> Any:
        """What rank 0 gave, on every rank.

        Raises:
            LostRank: a process is gone.
        """
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, device=torch.device(self._device))
        except RuntimeError as error:
            raise LostRank(f"a process of this cell is gone ({_first_line(error)})") from error
        return box[0]

    def leave(self) -> None:
        """Take this process out; the others notice at their next exchange."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def join_ranks(run_dir: Path) -> Ranks | None:
    """The processes this one was started with: by srun, or by torchrun; None if it is alone.

    Under srun the first process listens on a free port and leaves its address beside the job's
    other files, since nodes need not know each other by name before that.
    """
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    environment = os.environ
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_RANK", rank))
        _begin(local, init_method="env://")
        return Ranks(rank, size)
    size = int(environment.get("SLURM_NTASKS", "1"))
    if environment.get(JOB_ID_VARIABLE) and "SLURM_PROCID" in environment and size > 1:
        rank, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        name = f"{environment[JOB_ID_VARIABLE]}-{environment.get(RESTART_VARIABLE) or 0}"
        place = run_dir / f".ranks-{name}.tmp"
        _begin(local, store=_meet(place, rank, size), rank=rank, world_size=size)
        if rank == 0:  # everyone is here
            place.unlink(missing_ok=True)
        return Ranks(rank, size)
    return None


def _begin(local: int, **options: Any) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        backend = "nccl" if dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE, **options)


def _meet(file: Path, rank: int, size: int) -> dist.Store:
    """A store on the machine of rank 0, whose address is told through a file."""
    wait = timedelta(seconds=_GATHERING_SECONDS)
    if rank == 0:
        host = socket.gethostname()
        store = dist.TCPStore(host, 0, size, True, wait, wait_for_workers=False)
        write_json(file, {"host": host, "port": store.port})
        return store
    deadline = time.monotonic() + _GATHERING_SECONDS
    while not (told := read_json(file)):
        if time.monotonic() > deadline:
            raise LostRank("the first process of this cell did not appear")
        time.sleep(0.1)
    return dist.TCPStore(told["host"], told["port"], size, False, wait, wait_for_workers=False)
