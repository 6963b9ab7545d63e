"""Who runs a cell, and how far it got: plain files, fit for shared filesystems.

`claim` names the one process that may write; `heartbeat` is its lease; `status.json` is for people
and launchers; `result.json`, written last, means done. Files are the only truth, because databases
with write-ahead logs do not work over network filesystems. Standard library only: a login node
reads a thousand cells without loading torch.

Source: ours, from open(2) on O_EXCL over NFS (link a private file and look at its link count).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LEASE_SECONDS = 180.0
BEAT_SECONDS = 5.0
#: A steal takes milliseconds; a steal lock older than this was left by a process that died.
STEAL_SECONDS = 30.0

STATES = ["planned", "submitted", "running", "done", "failed", "cancelled", "preempted", "lost"]
#: Environment of a launched cell: what `write_status` records about the job it runs in.
JOB_ID_VARIABLE = "ZOLAB_JOB_ID"
LOG_VARIABLE = "ZOLAB_JOB_LOG"


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


def write_json(path: str | Path, value: Any, sync: bool = True) -> None:
    """Replace `path` by `value` as JSON, so that a reader sees the old or the new text, never half.

    NaN and infinities are written as such; `sync` forces the text to disk before it counts.

    Raises:
        OSError: nothing was replaced (disk full, directory gone); the old file is untouched.
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        _write(temp, json.dumps(value).encode() + b"\n", sync)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def read_json(path: str | Path) -> dict[str, Any]:
    """The object stored at `path`; empty if the file is missing, half-written or not an object."""
    try:
        return _parse(Path(path).read_bytes())
    except OSError:
        return {}


class Holder(NamedTuple):
    """What a claim file says ("unknown" and 0 if unreadable) and what was found out about it."""

    host: str
    pid: int
    age: float  # seconds since claim or heartbeat was written
    stale: bool  # certainly or presumably dead
    raw: bytes  # content of the claim; a steal removes exactly this


@dataclass
class Claim:
    """The right to write into one run directory. Made by `acquire`; usable as a context manager."""

    run_dir: Path
    token: str
    interval: float = BEAT_SECONDS
    raw: bytes = field(default=b"", repr=False)
    _last_beat: float = field(default=float("-inf"), repr=False)

    def check(self) -> None:
        """Return if the claim is still ours (one read of a small file).

        Raises:
            Fenced: another process took the cell over, or the directory is gone.
        """
        now = _read(self.run_dir / "claim")
        if now is None:
            # someone may be putting a claim back that was moved by mistake: look once more
            time.sleep(0.05)
            now = _read(self.run_dir / "claim")
        if now != self.raw:
            taker = _parse(now) if now else {}
            by = f"process {taker.get('pid')} on {taker.get('host')}" if taker else "nobody"
            raise Fenced(f"{self.run_dir}: the claim of this process is gone; held by {by} now")

    def beat(self, payload: Mapping[str, Any] | None = None, force: bool = False) -> bool:
        """Renew the lease and publish `payload` (step, steps, loss, forwards_per_second, ...).

        Does nothing within `interval` seconds of the last time, unless `force`; returns whether it
        wrote. Raises `Fenced` if the claim is not ours any more.
        """
        now = time.monotonic()
        if not force and now - self._last_beat < self.interval:
            return False
        self.check()
        own = {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        body = {"state": "running", **(payload or {}), **own}
        write_json(self.run_dir / "heartbeat", body, sync=False)
        self._last_beat = now
        return True

    def release(self) -> None:
        """Give the cell back. Does nothing if the claim is not ours any more."""
        if _read(self.run_dir / "claim") == self.raw:
            _remove_if(self.run_dir / "claim", self.raw)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(
    run_dir: str | Path, lease: float = LEASE_SECONDS, interval: float = BEAT_SECONDS
) -> Claim:
    """Become the one process that may run the cell in `run_dir`.

    A claim whose process is dead on this machine is taken over at once; one from another machine
    after `lease` seconds without a write to claim or heartbeat, by the clock of the filesystem.
    A process that is alive on this machine keeps its claim however long it is silent.
    `interval` is the least time between heartbeats of the new claim, in seconds.

    Raises:
        Busy: another live process holds the cell.
        OSError: the directory is missing or cannot be written.
    """
    run_dir = Path(run_dir)
    token = uuid.uuid4().hex
    me = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
    raw = json.dumps({"token": token, **me, "start": _process_start(os.getpid())}).encode()
    temp = run_dir / f".claim-{token}.tmp"
    holder = None
    try:
        _write(temp, raw, sync=True)
        for _ in range(200):
            if _link(temp, run_dir / "claim"):
                _sweep_temporaries(run_dir, temp.stat().st_mtime - lease)
                return Claim(run_dir, token, interval, raw)
            os.utime(temp)  # the server's clock, not ours, tells how old a heartbeat is
            holder = find_holder(run_dir, lease, now=temp.stat().st_mtime)
            if holder is None:
                continue
            if not holder.stale:
                break
            if not _steal(run_dir, holder.raw, temp):
                time.sleep(random.uniform(0.002, 0.02))
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()
    who = holder or Holder("unknown", 0, 0.0, False, b"")
    raise Busy(run_dir, who.host, who.pid, who.age)


def find_holder(
    run_dir: str | Path, lease: float = LEASE_SECONDS, now: float | None = None
) -> Holder | None:
    """Who holds the cell, or None if it is free.

    `lease` as in `acquire`; `now` is `filesystem_time` of the run directory, measured if None.
    """
    run_dir = Path(run_dir)
    raw = _read(run_dir / "claim")
    if raw is None:
        return None
    last = max(_mtime(run_dir / "claim") or 0.0, _mtime(run_dir / "heartbeat") or 0.0)
    body = _parse(raw)
    alive = _is_alive(body)
    if now is None:  # one judged by its process needs no touched file for its age
        now = filesystem_time(run_dir) if alive is None else time.time()
    age = max(0.0, now - last)
    stale = age > lease if alive is None else not alive
    return Holder(body.get("host") or "unknown", body.get("pid") or 0, age, stale, raw)


def filesystem_time(directory: str | Path) -> float:
    """Now by the clock that stamps files in `directory`; by our own if it cannot be written."""
    temp = Path(directory) / f".clock-{uuid.uuid4().hex}.tmp"
    try:
        temp.touch()
        return temp.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def write_status(run_dir: str | Path, state: str, **fields: Any) -> None:
    """Replace status.json by `state`, the time and `fields`, such as `attempt=2` or `error="..."`.

    `attempt`, `job_id`, `host` and `log` keep their last value unless given; with state `running`
    the last three come from the environment of this process. `error` is null unless given.

    Raises:
        ValueError: `state` is none of `STATES`.
    """
    if state not in STATES:
        raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
    old = read_status(run_dir)
    kept = {key: old.get(key) for key in ("attempt", "job_id", "host", "log")}
    if state == "running":
        kept["job_id"] = os.environ.get(JOB_ID_VARIABLE) or None
        kept["log"] = os.environ.get(LOG_VARIABLE) or None
        kept["host"] = socket.gethostname()
    body = {"state": state, "time": time.time(), **kept, "error": None, **fields}
    write_json(Path(run_dir) / "status.json", body)


def read_status(run_dir: str | Path) -> dict[str, Any]:
    """The content of status.json; empty if it is missing or half-written."""
    return read_json(Path(run_dir) / "status.json")


def read_heartbeat(run_dir: str | Path) -> dict[str, Any]:
    """The last published progress; empty if there is none or it is unreadable."""
    return read_json(Path(run_dir) / "heartbeat")


def state_of(run_dir: str | Path, lease: float = LEASE_SECONDS, now: float | None = None) -> str:
    """The state of a cell as its files tell it, one of `STATES`.

    `done` needs result.json, whatever status.json says; `running` needs a live holder; a cell that
    says it runs, or is done, without either is `lost`. The scheduler is not asked.
    """
    run_dir = Path(run_dir)
    if (run_dir / "result.json").exists():
        return "done"
    holder = find_holder(run_dir, lease, now)
    if holder is not None and not holder.stale:
        return "running"
    if (run_dir / "result.json").exists():  # finished between the two looks
        return "done"
    said = read_status(run_dir).get("state")
    if said in ("failed", "cancelled", "preempted"):
        return said
    if said in ("running", "done", "lost") or holder is not None:
        return "lost"
    return "submitted" if said == "submitted" else "planned"


def next_attempt(run_dir: str | Path) -> Path:
    """Make and return attempts/<n> with the lowest n, counted from 1, above all that exist."""
    attempts = Path(run_dir) / "attempts"
    attempts.mkdir(exist_ok=True)
    number = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            (attempts / str(number)).mkdir()
            return attempts / str(number)


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
    if not _link(temp, lock):
        raw, written = _read(lock), _mtime(lock)
        if raw is None or written is None:
            return False
        # two locks can exist only if a thief slept half a minute here; `_remove_if` still verifies
        if _is_alive(_parse(raw)) is False or temp.stat().st_mtime - written > STEAL_SECONDS:
            _remove_if(lock, raw)
        return False
    try:
        claim = run_dir / "claim"
        return _read(claim) == judged and _remove_if(claim, judged)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


def _remove_if(path: Path, expected: bytes) -> bool:
    """Remove `path` if it holds `expected`: move it aside, look at it, else put it back."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    found = _read(aside)
    if found != expected:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
    return found == expected


def _link(temp: Path, target: Path) -> bool:
    """Create `target` exclusively. A lost NFS reply may report EEXIST for a link that was made."""
    before = temp.stat().st_nlink
    try:
        os.link(temp, target)
    except FileExistsError:
        return temp.stat().st_nlink > before
    return True


def _sweep_temporaries(run_dir: Path, before: float) -> None:
    """Remove what killed processes left behind, if last written before that time."""
    for path in run_dir.glob(".*.tmp"):
        written = _mtime(path)
        if written is not None and written < before:
            with contextlib.suppress(OSError):
                path.unlink()


def _write(path: Path, data: bytes, sync: bool) -> None:
    with open(path, "xb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _mtime(path: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None


def _parse(raw: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(value := json.loads(raw), dict):
            return value
    return {}
