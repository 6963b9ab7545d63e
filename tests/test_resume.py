"""A run that is killed and continued equals one that was not; replay rebuilds any step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zolab import assets, compose
from zolab.checkpoint import load_tensors, save_tensors, weights_hash
from zolab.errors import UserError
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
    "hift": ("optimizer=hift", "train.checkpoint_minutes=0"),
    "galore": ("optimizer=galore", "optimizer.update_every=5", "train.checkpoint_minutes=0"),
    "apollo": ("optimizer=apollo", "optimizer.update_every=5", "train.checkpoint_minutes=0"),
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
    ("name", "kills"),
    [
        *(("in_place", 10), ("paired_masked", 10), ("momentum", 4)),
        *(("adamw", 4), ("hift", 3)),
        pytest.param("galore", 3, marks=pytest.mark.slow),
        pytest.param("apollo", 3, marks=pytest.mark.slow),
    ],
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
    best = [folder / "best.safetensors" for folder in (whole, broken)]
    assert best[0].exists() == best[1].exists() == (not journal_text(whole))
    if best[0].exists():
        assert best[0].read_bytes() == best[1].read_bytes()
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


def test_adamw_keeps_its_best_weights_not_its_last(tmp_path: Path) -> None:
    """Also when it died after the last row and before the result."""
    options = ("optimizer.lr=0.03", "train.steps=8", "train.eval_every=4")
    folder = prepare(tmp_path, *CELLS["adamw"], *options)
    result = run_dir(folder)
    assert result["best"]["step"] < 8
    kept = (folder / "best.safetensors").read_bytes()
    weights, extra = load_tensors(folder / "best.safetensors")
    assert extra == {"step": result["best"]["step"]}
    assert len(weights) == 52
    (folder / "result.json").unlink()
    assert run_dir(folder)["weights_hash"] == result["weights_hash"]
    assert (folder / "best.safetensors").read_bytes() == kept


@pytest.mark.parametrize("name", ["in_place", "adamw"])
def test_changed_data_is_not_continued(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(assets.task_dir("uci_sent"), data)
    folder = prepare(tmp_path / "runs", *CELLS[name], f"task.path={data}")
    result = run_dir(folder)
    (folder / "result.json").unlink()
    assert run_dir(folder)["weights_hash"] == result["weights_hash"]
    (folder / "result.json").unlink()
    rows = (data / "train.jsonl").read_text().replace("movie", "film")
    (data / "train.jsonl").write_text(rows)
    with pytest.raises(UserError, match=r"began with other base \(header\.json\)"):
        run_dir(folder)


def test_random_weights_are_kept_and_watched(tmp_path: Path) -> None:
    options = ("model.init=random", "train.steps=4")
    folder = prepare(tmp_path, *CELLS["in_place"], *options)
    first = run_dir(folder)
    replay(folder, 4, tmp_path / "model")
    (folder / "result.json").unlink()
    assert run_dir(folder)["weights_hash"] == first["weights_hash"]
    tensors, extra = load_tensors(folder / "init.safetensors")
    name = next(iter(tensors))
    save_tensors(folder / "init.safetensors", {**tensors, name: tensors[name] + 1}, extra)
    with pytest.raises(UserError, match="began with other init"):
        replay(folder, 4, tmp_path / "other")
    (folder / "init.safetensors").unlink()
    with pytest.raises(UserError, match=r"init\.safetensors: gone"):
        replay(folder, 4, tmp_path / "other")


def test_a_model_with_a_weight_missing_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(assets.model_dir("opt-prompt-2m"), model)
    tensors = load_file(model / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("layers.2.fc2.weight"))
    del tensors[gone]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    folder = prepare(tmp_path / "runs", f"model.path={model}")
    with pytest.raises(UserError, match=r"the weights lack .*layers\.2\.fc2\.weight"):
        run_dir(folder)
