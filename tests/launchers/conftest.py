from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from launchers.sweep import launch
from tests.slurm.cluster import private_slurm, what_is_missing
from zolab import ledger

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FUNCTION = "fake_cells:run"


def cell_name(cell) -> str:
    known = {k: v for k, v in cell.items() if k != "run_root"}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def write_cell(cell) -> Path:
    folder = Path(cell["run_root"]) / cell_name(cell)
    folder.mkdir(parents=True, exist_ok=True)
    # In one move, as the real store does: another launcher's job may be reading it just now.
    ledger.write_json(folder / "config.json", cell)
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
    if missing := what_is_missing():
        message = f"a private SLURM needs {', '.join(missing)}"
        if os.environ.get("ZOLAB_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with pytest.MonkeyPatch.context() as patch, private_slurm() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Path(environment["ZOLAB_SLURM_HOME"]).parent
