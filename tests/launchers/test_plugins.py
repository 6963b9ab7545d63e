"""The plugins inside Hydra, in a process of their own, with fake cells."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

APP = """
    import sys
    import hydra
    from omegaconf import OmegaConf
    from conftest import FUNCTION, cell_name, write_cell
    from launchers import sweep
    from zolab import compose

    # cells of this test have a schema of their own
    def check(config):
        tree = OmegaConf.to_container(OmegaConf.create(config))
        return {key: value for key, value in tree.items() if key != "hydra"}

    compose.check = check
    compose.run_id, compose.write_cell = cell_name, write_cell
    sweep.launch.__kwdefaults__["function"] = FUNCTION

    @hydra.main(config_path=sys.argv.pop(1), config_name="config", version_base="1.3")
    def main(config):
        raise RuntimeError("a sweep must not call the task function")

    main()
"""
CONFIG = """
    defaults:
      - _self_
      - experiment: null
      - override hydra/sweeper: zolab
      - override hydra/launcher: zolab
      - override hydra/hydra_logging: none
    run_root: runs
    seed: 0
    do: work
    seconds: 0
    grid: null
    train: {select_by: accuracy}
    launcher: {kind: local, parallel: 2}
    sweep: {}
    hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: ., subdir: .}}
"""
EXPERIMENT = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 0,1
grid:
  - do: [work]
  - {do: raise, seed: 7}
"""


@pytest.fixture
def zolab_app(tmp_path):
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "config.yaml").write_text(textwrap.dedent(CONFIG).lstrip())
    (conf / "experiment" / "two.yaml").write_text(EXPERIMENT.lstrip())
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess:
        # as after an editable install: the checkout, and the folder of the plugins
        path = os.pathsep.join(map(str, (ROOT, ROOT / "launchers", HERE)))
        return subprocess.run(
            [sys.executable, str(tmp_path / "app.py"), str(conf), *arguments],
            cwd=work,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.work = work
    return run


def test_a_sweep_runs_cells_and_leaves_nothing_else_behind(zolab_app):
    done = zolab_app("-m", "seed=0,1,1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 cells (1 duplicate merged): 2 to run\n")
    assert [p.name for p in zolab_app.work.iterdir()] == ["runs"]
    assert len(list(zolab_app.work.glob("runs/*/result.json"))) == 2
    again = zolab_app("-m", "seed=0,1")
    assert again.stdout.startswith("2 cells: 2 done, 0 to run\n")


def test_an_experiment_with_params_and_grid_sweeps_without_m(zolab_app):
    done = zolab_app("experiment=two")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("3 cells: 3 to run\n")
    assert "1 of 3 cells have no result" in done.stdout
    assert "seed=7 do=raise" in done.stdout
    assert "Traceback" not in done.stderr


def test_other_sweepers_can_use_the_launcher(zolab_app):
    done = zolab_app("-m", "hydra/sweeper=basic", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert len(list(zolab_app.work.glob("runs/*/result.json"))) == 2
    failed = zolab_app("-m", "hydra/sweeper=basic", "seed=2,3", "do=raise")
    assert failed.returncode == 1
    assert "is failed: ValueError: told to raise" in failed.stderr


@pytest.mark.parametrize(
    "modules",
    ["launchers.sweep, launchers.slurm, launchers.local", "launchers.expand, zolab.compose"],
)
def test_the_login_node_loads_no_torch(modules):
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
