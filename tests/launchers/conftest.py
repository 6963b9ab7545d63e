from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from launchers.sweep import launch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FUNCTION = "fake_cells:run"


def cell_name(cell) -> str:
    known = {k: v for k, v in cell.items() if k != "run_root"}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def write_cell(cell) -> Path:
    folder = Path(cell["run_root"]) / cell_name(cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(cell))
    return folder


STORE = SimpleNamespace(run_id=cell_name, write_cell=write_cell)


@pytest.fixture(autouse=True)
def _child_path(monkeypatch):
    """Processes of cells find the checkout and the fake cell."""
    path = os.pathsep.join(map(str, (ROOT, HERE)))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def make_cell(tmp_path):
    def make(seed: int = 0, do: str = "work", seconds: float = 0.0) -> dict:
        return {"run_root": str(tmp_path / "runs"), "seed": seed, "do": do, "seconds": seconds}

    return make


@pytest.fixture
def sweep():
    """Launch fake cells; the outcome with its printed text as `text`."""

    def run(cells, launcher=None, out=None, **options):
        out = out or io.StringIO()
        launcher = launcher or {"kind": "local", "parallel": 2, "threads": 1}
        labels = [f"do={cell['do']} seed={cell['seed']}" for cell in cells]
        outcome = launch(
            cells, launcher, options, labels=labels, function=FUNCTION, store=STORE, out=out
        )
        outcome.text = out.getvalue() if isinstance(out, io.StringIO) else ""
        return outcome

    return run


@pytest.fixture(scope="session")
def slurm_cluster():
    """A private SLURM with 4 nodes of 4 CPUs and 2 pretend GPUs, ended after the session."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not _which(name)]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        message = f"a private SLURM needs {', '.join(missing)}"
        if os.environ.get("ZOLAB_REQUIRE_SLURM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    home = Path(tempfile.mkdtemp(prefix="zolab-slurm-"))
    with_database = all(_which(name) for name in ("slurmdbd", "mariadbd"))
    environment = {
        **os.environ,
        "ZOLAB_SLURM_HOME": str(home / "state"),
        "ZOLAB_SLURM_PORT": str(_free_ports(16)),
        "ZOLAB_SLURM_ACCT": "slurmdbd" if with_database else "none",
    }
    scripts = HERE.parent / "slurm"
    with pytest.MonkeyPatch.context() as patch:
        try:
            done = subprocess.run(
                [scripts / "start-slurm"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            for line in done.stdout.splitlines():
                name, _, value = shlex.split(line.removeprefix("export "))[0].partition("=")
                patch.setenv(name, value)
            yield home
        finally:
            command = [scripts / "stop-slurm", "--wipe"]
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
