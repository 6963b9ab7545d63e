"""`zolab doctor`: what it says of a cell that works, and of set-ups that do not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from zolab.cli import main
from zolab.costs.speed import SPEED_FILE
from zolab.verbs import doctor
from zolab.verbs.plan import plan_rows

SMALL = ("task.num_train=24", "task.num_dev=8", "task.num_test=8", "train.batch_size=4")


def ask(tmp_path: Path, capsys, *overrides: str) -> tuple[int, str]:
    code = main(["doctor", *SMALL, f"run_root={tmp_path / 'runs'}", *overrides])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_a_cell_that_works(tmp_path: Path, capsys) -> None:
    code, said = ask(tmp_path, capsys, "optimizer/placement=paired")
    assert code == 0, said
    assert "verdict: ready" in said
    assert 'it was"\n' in said  # the prompt, as text
    assert "candidate 1: 'Ġgreat'" in said
    assert "(right)" in said
    assert "24 train, 8 dev, 8 test" in said
    assert "self-check: placement paired works" in said
    assert "offload" in said  # memory of every placement
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [SPEED_FILE]  # nothing else
    speed = json.loads((tmp_path / "runs" / SPEED_FILE).read_text())
    assert speed["tokens_per_second"] > 0
    # a plan takes that speed
    (row,) = plan_rows([*SMALL, f"run_root={tmp_path / 'runs'}"])
    (other,) = plan_rows([*SMALL, f"run_root={tmp_path / 'elsewhere'}"])
    assert row.hours == pytest.approx(other.hours * 1.5e14 / speed["flops"])


def test_a_grid_is_looked_at_in_one_cell_and_that_is_said(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda cell, report: None)
    assert "grid: this is the cell that" in ask(tmp_path, capsys, "experiment=demo")[1]
    assert "grid" not in ask(tmp_path, capsys, "train.steps=9")[1]


def test_the_plan_of_offloading_is_told(tmp_path: Path, capsys) -> None:
    streams = ("optimizer/placement=offload", "optimizer.placement.tier=cpu*1+disk")
    code, said = ask(tmp_path, capsys, *streams)
    assert code == 0, said
    blocks = int(re.search(r"offload plan: (\d+) blocks", said)[1])
    assert f"1 on cpu, {blocks - 1} on disk" in said
    code, said = ask(tmp_path, capsys, *streams[:1], "optimizer.placement.tier=cpu*1+disk*99")
    assert code == 1
    assert said.count("problem: ") == said.count("the numbers make 100 blocks, the model has ") == 1


@pytest.mark.parametrize("optimizer", ["zero_shot", "hift"])
def test_references_too(optimizer: str, tmp_path: Path, capsys) -> None:
    code, said = ask(tmp_path, capsys, f"optimizer={optimizer}")
    assert code == 0, said
    assert "one step" in said


def test_cut_prompts_are_a_warning(tmp_path: Path, capsys) -> None:
    code, said = ask(tmp_path, capsys, "optimizer=zero_shot", "task.max_length=8")
    assert code == 0
    assert "train rows are longer than 8 tokens and lose their beginning (task.max_length)" in said


def test_a_loss_that_is_not_finite_is_a_problem(tmp_path: Path, capsys) -> None:
    code, said = ask(tmp_path, capsys, "optimizer=sgd", "optimizer.lr=1e30")
    assert code == 1
    assert "problem: the loss after one step is" in said
    assert "verdict: not ready" in said


def test_too_little_memory_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda device: 1 << 20)
    code, said = ask(tmp_path, capsys)
    assert code == 1
    assert "too large" in said
    assert "problem: memory: about" in said
    assert "weights:" not in said


def test_too_small_a_disk_is_a_problem(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    code, said = ask(tmp_path, capsys, "optimizer=adamw")
    assert code == 1
    assert "problem: run_root" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer=adamw", "sparsity=random"), "has no masked form"),
        (("task.path=nowhere",), "task.path = 'nowhere'"),
        (("model.path=nowhere",), "model.path = 'nowhere'"),
    ],
)
def test_a_cell_that_is_none(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys
) -> None:
    code, said = ask(tmp_path, capsys, *overrides)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
