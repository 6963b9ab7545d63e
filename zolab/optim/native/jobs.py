"""Work of the kernels in lots, shared among threads: torch's own, where they can be had.

Sweeps and products of a process alternate, so both should run in the same threads: others would
wait for the same cores while those of the last product still spin. torch's OpenMP is found through
the library of torch that was linked with it; without one (macOS, a forked child) a pool of plain
threads does the same shares of the same work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from ctypes import CDLL, Array, Structure, addressof, c_void_p, cast
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zolab.optim.native import probe

#: Below this many elements a second thread costs more than it saves.
PARALLEL_FROM = 1 << 18
#: Threads get whole tiles of kernels.c; a cut elsewhere would make the noise of a tile twice.
TILE = 2048


class Library:
    """The kernels, and what every call needs.

    Args:
        lib: as `probe.open_library` gives it.
        table: the levels of `gauss8`.
    """

    def __init__(self, lib: CDLL, table: Tensor) -> None:
        self.lib = lib
        self.levels = table.data_ptr()
        self.thin_rank = int(lib.zo_thin_rank())
        self._table = table  # keeps the memory that `levels` points to
        self._at = {name: cast(getattr(lib, name), c_void_p).value for name in probe.JOBS}
        self._use_team()

    def lot(
        self, name: str, asked: Structure, count: int, unit: int = TILE, weight: int = 1
    ) -> probe.Lot:
        """Work of one entry point; whoever runs it keeps `asked`, and what that points to.

        Args:
            name: of the entry point.
            asked: its structure.
            count: items.
            unit: ranges begin at multiples of this.
            weight: elements of an item.
        """
        return probe.Lot(self._at[name], addressof(asked), count, unit, weight)

    def run(self, lots: Sequence[probe.Lot]) -> None:
        """Lots in as many threads as torch uses, none of which has memory in common with another;
        C releases the interpreter lock."""
        elements = sum(lot.count * lot.weight for lot in lots)
        self.run_packed((probe.Lot * len(lots))(*lots), len(lots), elements)

    def run_packed(self, told: Array[probe.Lot], count: int, elements: int) -> None:
        """The same for lots that lie as C takes them, with so many elements in all."""
        threads = torch.get_num_threads() if elements >= PARALLEL_FROM else 1
        if threads < 2 or self._team:
            self.lib.zo_run(told, count, threads)
        else:
            self._run_in_pool(told, count, threads)

    def _run_in_pool(self, told: Array[probe.Lot], count: int, threads: int) -> None:
        pool = _workers(threads - 1)
        share = self.lib.zo_share
        others = [pool.submit(share, told, count, i, threads) for i in range(1, threads)]
        try:
            share(told, count, 0, threads)
        finally:
            wait(others)  # even when interrupted: they write to the caller's memory
        for other in others:
            other.result()

    def _use_team(self) -> None:
        self._team = False
        if _forked:
            return
        try:
            on = CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            functions = [cast(getattr(on, name), c_void_p) for name in names]
        except (OSError, AttributeError):
            return
        self.lib.zo_team(*functions)
        self._team = True

    @property
    def has_team(self) -> bool:
        """Whether threads are torch's own: a call is over when all of them are, and not before."""
        return self._team

    def leave_team(self) -> None:
        """Use plain threads from now on."""
        self._team = False


class _Waiting(threading.local):
    """Sweeps of a thread that have not been run, by the address of their weights, each with what it
    keeps alive; None outside `together`."""

    lots: dict[int, tuple[probe.Lot, Any]] | None = None
    on: Library | None = None


_waiting = _Waiting()


def sweep(on: Library, place: int, lot: probe.Lot, keep: Any) -> None:
    """Run a sweep now, or with others at the end of `together`.

    Args:
        on: the kernels.
        place: address of the weights.
        lot: the sweep.
        keep: what must live until it has been run.
    """
    lots = _waiting.lots
    if lots is None:
        on.run([lot])
        return
    if place in lots:
        settle()  # one after the other: threads do not wait between lots
    _waiting.lots[place] = lot, keep
    _waiting.on = on


@contextmanager
def together() -> Iterator[None]:
    """Sweeps of this thread are collected and run at the end, without waiting between them.

    Whoever looks at the weights before that calls `settle` first.
    """
    if _waiting.lots is not None:
        yield
        return
    _waiting.lots = {}
    try:
        yield
        settle()
    finally:
        _waiting.lots = None


def settle() -> None:
    """Run what `together` has collected so far."""
    lots = _waiting.lots
    if lots:
        _waiting.lots = {}
        _waiting.on.run([lot for lot, _ in lots.values()])


#: Whether this process was forked: OpenMP would wait for threads that stayed in the parent.
_forked = False
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _workers(count: int) -> ThreadPoolExecutor:
    """The one pool of this process."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            # A smaller pool is not shut down: another thread may be about to use it.
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="zolab-native"), count
        return _pool


def drop_pool() -> None:
    """In a forked child: the pool's threads stayed in the parent, and so may have the lock."""
    global _pool, _pool_size, _lock, _forked
    _forked = True
    _lock = threading.Lock()
    _pool, _pool_size = None, 0
    _waiting.lots = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=drop_pool)
