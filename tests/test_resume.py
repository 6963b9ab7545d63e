"""A run that is killed and continued equals one that was not; replay rebuilds any step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zolab import compose
from zolab.checkpoint import weights_hash
from zolab.journal import read_journal
from zolab.run import replay, run_dir
from zolab.tracking.local import read_rows
from zolab.tracking.schema import is_measured

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "task.num_train=40", "task.num_dev=16", "task.num_test=16", "train.batch_size=8",
    "train.steps=24", "train.eval_every=9", "train.log_every=3",
)  # fmt: skip
CELLS = {
    "in_place": ("optimizer/placement=in_place",),
    "paired": ("optimizer/placement=paired",),
    "paired_masked": ("optimizer/placement=paired", "sparsity=small_weights"),
    "in_place_masked": ("optimizer/placement=in_place", "sparsity=random"),
    "momentum": ("optimizer=mezo_momentum", "train.checkpoint_minutes=0"),
    "adamw": ("optimizer=adamw", "train.checkpoint_minutes=0"),
}


def prepare(root: Path, *overrides: str, wandb: bool = False) -> Path:
    """Run directory of a small cell under `root`."""
    given = [*SMALL, *overrides, f"run_root={root}"]
    if not wandb:
        given.append("tracking=local")
    merged: dict[str, str] = {}
    for text in given:
        merged[text.split("=")[0]] = text
    config = compose.compose(compose.prepare_overrides(merged.values()))
    return compose.write_cell(compose.check(config))


def exact_rows(folder: Path) -> list[dict]:
    """Metrics without what the schema marks as measured."""
    return [
        {k: v for k, v in row.items() if not is_measured(k)}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def journal_text(folder: Path) -> list[str]:
    return [json.dumps(row.to_json()) for row in read_journal(folder)]


def kill_and_continue(folder: Path, kills: int, seed: int) -> str:
    command = [sys.executable, "-m", "tests.resume_driver", str(folder), str(kills), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "kills"), [("in_place", 10), ("paired_masked", 10), ("momentum", 4), ("adamw", 4)]
)
def test_killed_many_times_equals_undisturbed(name: str, kills: int, tmp_path: Path) -> None:
    whole = prepare(tmp_path / "whole", *CELLS[name], wandb=True)
    broken = prepare(tmp_path / "broken", *CELLS[name], wandb=True)
    assert whole.name == broken.name
    expected = run_dir(whole)
    told = kill_and_continue(broken, kills, seed=len(name))
    got = json.loads((broken / "result.json").read_text())
    assert told.count("killed attempt") == kills, told
    assert got["weights_hash"] == expected["weights_hash"]
    assert got["best"] == expected["best"]
    assert got["final"] == expected["final"]
    assert journal_text(broken) == journal_text(whole)
    assert exact_rows(broken) == exact_rows(whole)
    assert not (broken / "checkpoint").exists()
    _same_from_wandb(tmp_path)


def _same_from_wandb(root: Path) -> None:
    """The same comparison with nothing but the offline wandb files."""
    from analysis.runs import read_wandb

    tables = []
    for name in ("whole", "broken"):
        metrics = read_wandb(root / name).metrics
        rows = metrics.select("run_id", "step", "key", "value").rows()
        # NaN is not equal to itself, so compare what is written.
        tables.append(sorted(repr(row) for row in rows if not is_measured(row[2])))
    assert len(tables[0]) > 20
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", ["in_place", "paired", "paired_masked", "in_place_masked"])
def test_replay_writes_the_saved_weights(name: str, tmp_path: Path) -> None:
    """Three steps, saved live by checkpoints and rebuilt from the journal, bit for bit."""
    from transformers import AutoModelForCausalLM

    saved = {}
    for steps in (4, 9, 24):
        folder = prepare(tmp_path / f"live{steps}", *CELLS[name], f"train.steps={steps}")
        saved[steps] = run_dir(folder)["weights_hash"]
    for steps, expected in saved.items():
        out = tmp_path / f"model{steps}"
        replay(folder, steps, out)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert weights_hash(model) == expected


def test_looking_more_often_changes_no_bit(tmp_path: Path) -> None:
    hashes = set()
    for i, cadence in enumerate(
        (
            ("train.eval_every=7", "train.log_every=1"),
            ("train.eval_every=2", "train.log_every=100"),
            ("train.eval_every=5", "train.checkpoint_minutes=0"),
        )
    ):
        folder = prepare(tmp_path / str(i), *CELLS["in_place"], *cadence)
        hashes.add(run_dir(folder)["weights_hash"])
    assert len(hashes) == 1


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    folder = prepare(tmp_path, *CELLS["in_place"], "train.steps=2")
    first = run_dir(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert run_dir(folder) == first
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
