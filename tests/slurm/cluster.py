"""A real SLURM of its own on this machine, for tests: see start-slurm."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


def what_is_missing() -> list[str]:
    """Programs, or the right of root, without which no cluster can be started here."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not _which(name)]
    return missing + (["root"] if os.geteuid() != 0 else [])


@contextlib.contextmanager
def private_slurm() -> Iterator[dict[str, str]]:
    """Start a cluster of 4 nodes with 4 CPUs and 2 pretend GPUs each; end it afterwards.

    Yields:
        Environment variables that lead SLURM's commands to it.
    """
    home = Path(tempfile.mkdtemp(prefix="zolab-slurm-"))
    with_database = all(_which(name) for name in ("slurmdbd", "mariadbd"))
    environment = {
        **os.environ,
        "ZOLAB_SLURM_HOME": str(home / "state"),
        "ZOLAB_SLURM_PORT": str(_free_ports(16)),
        "ZOLAB_SLURM_ACCT": "slurmdbd" if with_database else "none",
    }
    try:
        start = HERE / "start-slurm"
        done = subprocess.run([start], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = (line.removeprefix("export ") for line in done.stdout.splitlines())
        pairs = (shlex.split(line)[0].partition("=") for line in told)
        yield {name: value for name, _, value in pairs}
    finally:
        command = [HERE / "stop-slurm", "--wipe"]
        subprocess.run(command, env=environment, capture_output=True, timeout=120)
        shutil.rmtree(home, ignore_errors=True)


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_ports(count: int) -> int:
    """First of `count` consecutive ports nobody listens on.

    Neighbouring process ids begin at ranges that do not overlap: a range that is free now may be
    taken before the daemons bind it.
    """
    for first in range(21000 + os.getpid() * count % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")
