"""The right to run a cell: one process at a time holds `claim`, and `heartbeat` is its lease."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zolab.errors import UserError
from zolab.ledger.files import (
    filesystem_time,
    link,
    mtime,
    parse,
    read_bytes,
    remove_if,
    sweep_temporaries,
    write_bytes,
    write_json,
)
from zolab.process import resident_bytes

LEASE_SECONDS = 180.0
BEAT_SECONDS = 5.0
#: A steal takes milliseconds; a steal lock older than this was left by a process that died.
STEAL_SECONDS = 30.0
#: A lease outlives so many heartbeats that did not come through.
MISSED_BEATS = 6
#: Share of a run's time that looking after the claim may take, see `Claim.glance`.
_GLANCE_SHARE = 0.001

#: Environment of a launched cell: least seconds between heartbeats, the job it belongs to and how
#: often that job was put back into the queue.
BEAT_VARIABLE = "ZOLAB_BEAT_SECONDS"
JOB_ID_VARIABLE = "ZOLAB_JOB_ID"
RESTART_VARIABLE = "ZOLAB_JOB_RESTART"


class Busy(Exception):
    """Another live process, `pid` on `host`, holds the cell; it last wrote `age` seconds ago."""

    def __init__(self, run_dir: Path, host: str, pid: int, age: float) -> None:
        super().__init__(run_dir, host, pid, age)  # all arguments, so that it can be pickled
        self.run_dir, self.host, self.pid, self.age = run_dir, host, pid, age

    def __str__(self) -> str:
        by = f"process {self.pid} on {self.host}"
        return f"{self.run_dir} is held by {by}, last sign of life {self.age:.0f} s ago"


class Fenced(Exception):
    """This process was taken for dead and lost its claim; it must not write to the cell now."""


class Holder(NamedTuple):
    """What a claim file says ("unknown" and 0 if unreadable) and what was found out about it."""

    host: str
    pid: int
    age: float  # seconds since claim or heartbeat was written
    stale: bool  # certainly or presumably dead
    raw: bytes  # content of the claim; a steal removes exactly this
    last: float = 0.0  # when claim or heartbeat was written, by the clock of the filesystem
    alive: bool | None = None  # None: this machine cannot tell


@dataclass
class Claim:
    """The right to write into one run directory. Made by `acquire`; usable as a context manager."""

    run_dir: Path
    token: str
    interval: float = BEAT_SECONDS
    raw: bytes = field(default=b"", repr=False)
    _last_beat: float = field(default=float("-inf"), repr=False)
    _payload: dict[str, Any] = field(default_factory=dict, repr=False)
    _look_again: float = field(default=0.0, repr=False)

    def check(self) -> None:
        """Return if the claim is still ours (one read of a small file).

        Raises:
            Fenced: another process took the cell over, or the directory is gone.
        """
        now = read_bytes(self.run_dir / "claim")
        if now is None:
            # someone may be putting a claim back that was moved by mistake: look once more
            time.sleep(0.05)
            now = read_bytes(self.run_dir / "claim")
        if now != self.raw:
            taker = parse(now) if now else {}
            by = f"process {taker.get('pid')} on {taker.get('host')}" if taker else "nobody"
            raise Fenced(f"{self.run_dir}: the claim of this process is gone; held by {by} now")

    def glance(self) -> None:
        """As `check`, but not each time where the folder is slow.

        At most a thousandth of the time goes into looking. What a fenced process writes between
        two looks lands in its own attempt's journal, whose tail the reader drops.
        """
        begin = time.monotonic()
        if begin < self._look_again:
            return
        self.check()
        end = time.monotonic()
        self._look_again = end + (end - begin) / _GLANCE_SHARE

    def beat(self, payload: Mapping[str, Any] | None = None, force: bool = False) -> bool:
        """Renew the lease and publish `payload` (step, steps, loss, forwards_per_second, ...).

        Does nothing within `interval` seconds of the last time, unless `force`; returns whether it
        wrote. Raises `Fenced` if the claim is not ours any more, UserError if the disk is full.
        """
        now = time.monotonic()
        if not force and now - self._last_beat < self.interval:
            return False
        self.check()
        own = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        own["rss_bytes"] = resident_bytes()
        self._payload = dict(payload or {})
        body = {"state": "running", **self._payload, **own}
        path = self.run_dir / "heartbeat"
        try:
            write_json(path, body, sync=False)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error}); free some space and run the same "
                "command again"
            ) from error
        self._last_beat = now
        return True

    @contextlib.contextmanager
    def keep_alive(self) -> Iterator[None]:
        """Beat from a thread while this process does something long in one piece.

        Such as loading a model. A claim lost meanwhile shows at the next `check`.
        """
        over = threading.Event()

        def beats() -> None:
            while not over.wait(self.interval):
                try:
                    self.beat(self._payload, force=True)
                except (Fenced, OSError):
                    return

        thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def tidy(self) -> None:
        """Remove what processes left that were killed while they wrote, before this claim."""
        made = mtime(self.run_dir / "claim")
        if made is not None:
            sweep_temporaries(self.run_dir, made)

    def release(self) -> None:
        """Give the cell back. Does nothing if the claim is not ours any more."""
        if read_bytes(self.run_dir / "claim") == self.raw:
            remove_if(self.run_dir / "claim", self.raw)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(
    run_dir: str | Path,
    lease: float = LEASE_SECONDS,
    interval: float | None = None,
    patient: bool | None = None,
) -> Claim:
    """Become the one process that may run the cell in `run_dir`.

    A claim whose process is dead on this machine is taken over at once, and so is one of an earlier
    run of this very SLURM job, which the scheduler has declared over; one from another machine
    after `lease` seconds without a write to claim or heartbeat, by the clock of the filesystem.
    A process that is alive on this machine keeps its claim however long it is silent.

    Args:
        run_dir: directory of the cell.
        lease: seconds of silence after which a process of another machine counts as dead; a claim
            with long pauses between its heartbeats asks for more.
        interval: least seconds between heartbeats of the new claim; None for what the environment
            says, or `BEAT_SECONDS`.
        patient: wait until the holder shows a new sign of life or its lease is over, rather than
            take an old sign for life; None: in a SLURM job, which would else lose its place.

    Raises:
        Busy: another live process holds the cell.
        OSError: the directory is missing or cannot be written.
    """
    run_dir = Path(run_dir)
    token = uuid.uuid4().hex
    if interval is None:
        interval = float(os.environ.get(BEAT_VARIABLE) or BEAT_SECONDS)
    if patient is None:
        patient = bool(_job())
    body = {
        "token": token,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "start": _process_start(os.getpid()),
        "lease": max(lease, MISSED_BEATS * interval),
        **_job(),
    }
    raw = json.dumps(body).encode()
    temp = run_dir / f".claim-{token}.tmp"
    holder, first_sign = None, None
    tries = 0
    try:
        write_bytes(temp, raw, sync=True)
        while tries < 200:
            if link(temp, run_dir / "claim"):
                sweep_temporaries(run_dir, temp.stat().st_mtime - lease)
                return Claim(run_dir, token, interval, raw)
            os.utime(temp)  # the server's clock, not ours, tells how old a heartbeat is
            holder = find_holder(run_dir, lease, now=temp.stat().st_mtime)
            if holder is None:
                tries += 1
                continue
            if holder.stale or _is_superseded(parse(holder.raw)):
                tries += 1
                if not _steal(run_dir, holder.raw, temp):
                    time.sleep(random.uniform(0.002, 0.02))
                continue
            sign = (holder.raw, holder.last)
            first_sign = first_sign or sign
            if not patient or sign != first_sign or holder.alive:
                break
            time.sleep(min(1.0, lease / 20))
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()
    who = holder or Holder("unknown", 0, 0.0, False, b"")
    raise Busy(run_dir, who.host, who.pid, who.age)


def _job() -> dict[str, Any]:
    """The SLURM job this process runs in, and how often that was requeued."""
    job = os.environ.get(JOB_ID_VARIABLE)
    return {"job": job, "restart": int(os.environ.get(RESTART_VARIABLE) or 0)} if job else {}


def _is_superseded(body: Mapping[str, Any]) -> bool:
    """Whether a claim was made by an earlier run of the job that this process belongs to.

    After a node failure the scheduler starts the job anew at once, long before a lease is over. If
    the old process lives on, cut off, it finds its claim gone as soon as it is back.
    """
    mine, restart = _job(), body.get("restart")
    same = bool(mine) and body.get("job") == mine["job"]
    return same and isinstance(restart, int) and restart < mine["restart"]


def find_holder(
    run_dir: str | Path, lease: float = LEASE_SECONDS, now: float | None = None
) -> Holder | None:
    """Who holds the cell, or None if it is free.

    `lease` as in `acquire`; `now` is `filesystem_time` of the run directory, measured if None.
    """
    run_dir = Path(run_dir)
    raw = read_bytes(run_dir / "claim")
    if raw is None:
        return None
    last = max(mtime(run_dir / "claim") or 0.0, mtime(run_dir / "heartbeat") or 0.0)
    body = parse(raw)
    alive = _is_alive(body)
    if now is None:  # one judged by its process needs no touched file for its age
        now = filesystem_time(run_dir) if alive is None else time.time()
    age = max(0.0, now - last)
    own = body.get("lease")
    lease = max(lease, own) if isinstance(own, int | float) else lease
    stale = age > lease if alive is None else not alive
    return Holder(body.get("host") or "unknown", body.get("pid") or 0, age, stale, raw, last, alive)


def _machine() -> str:
    """Where process ids mean the same thing: host name alone is not enough for containers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; "" for a zombie, None if not readable."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return "" if fields[0] in "ZX" else fields[19]


def _is_alive(body: Mapping[str, Any]) -> bool | None:
    """Whether the process a claim names still exists; None if this machine cannot tell."""
    pid, start = body.get("pid"), body.get("start")
    if not isinstance(pid, int) or body.get("machine") != _machine():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process; /proc may hide it, but it is there
    found = _process_start(pid)
    return None in (found, start) or found == start


def _steal(run_dir: Path, judged: bytes, temp: Path) -> bool:
    """Remove the claim `judged` to be stale; False if another process is at it or was faster.

    One thief at a time: without the lock, a slow thief could move the fresh claim of a fast one,
    and a third process would slip into the gap before it is put back.
    """
    lock = run_dir / ".steal"
    if not link(temp, lock):
        raw, written = read_bytes(lock), mtime(lock)
        if raw is None or written is None:
            return False
        # two locks can exist only if a thief slept half a minute here; `remove_if` still verifies
        if _is_alive(parse(raw)) is False or temp.stat().st_mtime - written > STEAL_SECONDS:
            remove_if(lock, raw)
        return False
    try:
        claim = run_dir / "claim"
        return read_bytes(claim) == judged and remove_if(claim, judged)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
