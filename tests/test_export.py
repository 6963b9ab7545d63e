"""Runs of tuned models: continued after a kill, replayed, exported and loaded elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.test_resume import exact_rows, journal_text, kill_and_continue, prepare
from zolab import assets, compose
from zolab.checkpoint import Checkpoints, load_tensors, weights_hash
from zolab.cli import main
from zolab.errors import UserError
from zolab.evaluate import evaluate
from zolab.models.load import LoadedModel
from zolab.models.tuning import KINDS, load_tensor_train
from zolab.prepare import study_of, task_of
from zolab.run import rebuild, run_dir

#: A rate at which a few steps change the scores.
RATES = {"full": 1e-3, "head": 1e-2, "bitfit": 1e-2}
ADAPTERS = ("lora", "prefix", "prompt", "tensor_train")


def options(kind: str) -> tuple[str, ...]:
    rate = RATES.get(kind, 0.1)
    return (f"model/tuning={kind}", f"optimizer.lr={rate}", "optimizer.eps=1e-2", "train.steps=6",
            "train.eval_every=2")  # fmt: skip


@pytest.fixture(scope="module", params=sorted(KINDS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps of each tuning mode."""
    folder = prepare(tmp_path_factory.mktemp("runs"), *options(request.param))
    run_dir(folder)
    return folder


def scores_of(folder: Path, model: nn.Module) -> dict[str, float]:
    """The test scores of a model loaded elsewhere, with the task of a run."""
    from transformers import AutoTokenizer

    cell = compose.read_cell(folder)
    tokenizer = AutoTokenizer.from_pretrained(assets.model_dir("opt-prompt-2m"))
    task = task_of(cell)
    loaded = LoadedModel(model.eval(), tokenizer, 240)
    study = study_of(cell, task, {"test": task.load()["test"]}, loaded)
    got = evaluate(study.scorer, study.splits["test"], 16)
    return {"test/loss": got.loss, "test/accuracy": got.metrics["accuracy"]}


def kind_of(folder: Path) -> str:
    return compose.read_cell(folder)["model"]["tuning"]["kind"]


def load_export(folder: Path, out: Path) -> nn.Module:
    """What an export holds, loaded without zolab but for its own adapters."""
    from transformers import AutoModelForCausalLM

    if (out / "config.json").exists():
        return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        assets.model_dir("opt-prompt-2m"), dtype=torch.float32
    )
    if kind_of(folder) == "tensor_train":
        return load_tensor_train(base, out)
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, out)
    if kind_of(folder) == "prompt":  # peft leaves its vectors in the output; scores count from text
        base.model.decoder.register_forward_hook(
            lambda _, args, out: setattr(out, "last_hidden_state", out[0][:, 10:])
        )
    return model


def export(folder: Path, out: Path, *more: str) -> int:
    return main(["export", str(folder), "--out", str(out), *more])


def test_exported_weights_give_the_score_of_the_run(finished: Path, tmp_path: Path) -> None:
    kind = kind_of(finished)
    assert export(finished, tmp_path / "out") == 0
    assert (tmp_path / "out" / "adapter_config.json").exists() == (kind in ADAPTERS)
    best = json.loads((finished / "result.json").read_text())["best"]
    got = scores_of(finished, load_export(finished, tmp_path / "out"))
    assert got["test/accuracy"] == best["test/accuracy"]
    assert got["test/loss"] == pytest.approx(best["test/loss"], abs=2e-6)


def test_merged_lora_is_a_plain_model_with_the_score_of_the_run(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "runs", *options("lora"))
    best = run_dir(folder)["best"]
    assert export(folder, tmp_path / "out", "--merged") == 0
    model = load_export(folder, tmp_path / "out")
    assert not any("lora" in name for name, _ in model.named_parameters())
    got = scores_of(folder, model)
    assert got["test/accuracy"] == best["test/accuracy"]
    assert got["test/loss"] == pytest.approx(best["test/loss"], abs=1e-5)


def test_record_says_what_trains_and_what_is_kept(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    kind, record = kind_of(finished), result["model"]
    assert record["tuning"] == kind
    assert record["num_trained"] / record["num_parameters"] == record["trained_share"]
    assert (record["trained_share"] == 1.0) == (kind == "full")
    header = json.loads((finished / "header.json").read_text())
    # only what the base does not hold is kept beside the run
    if kind in ADAPTERS:
        assert header["placement"] == "paired"
        names = set(load_tensors(finished / "init.safetensors")[0])
        assert names == {row[0] for row in header["parameters"]}
        assert header["tuning"]["kind"] == kind
    else:
        assert not (finished / "init.safetensors").exists()
    assert ("tuning" in header) == (kind != "full")


def test_replay_gives_the_bits_of_the_run(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert weights_hash(rebuild(finished, 6).model) == result["weights_hash"]


@pytest.mark.parametrize("kind", ["lora", pytest.param("prefix", marks=pytest.mark.slow)])
def test_killed_many_times_equals_undisturbed(kind: str, tmp_path: Path) -> None:
    given = (*options(kind)[:3], "train.checkpoint_minutes=0")
    whole, broken = prepare(tmp_path / "whole", *given), prepare(tmp_path / "broken", *given)
    expected = run_dir(whole)
    told = kill_and_continue(broken, 3, seed=len(kind))
    got = json.loads((broken / "result.json").read_text())
    assert told.count("killed attempt") == 3, told
    for key in ("weights_hash", "best", "final"):
        assert got[key] == expected[key]
    assert journal_text(broken) == journal_text(whole)
    assert exact_rows(broken) == exact_rows(whole)


def test_checkpoint_of_a_frozen_base_holds_what_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[set[str]] = []
    real = Checkpoints.save_best

    def spy(self: Any, model: nn.Module, step: int) -> None:
        real(self, model, step)
        saved.append(set(self.load_best(step)))

    monkeypatch.setattr(Checkpoints, "save_best", spy)
    folder = prepare(tmp_path, *options("lora"))
    run_dir(folder)
    assert saved
    assert all("lora_" in name for names in saved for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "7"), "--step 7: the journal of"),
        (("--step", "bst"), "expected best, last or a whole number"),
        (("--merged",), "--merged: what prefix adds is no change of the model's own weights"),
        (("--adapter", "--merged"), "not allowed with argument"),
    ],
)
def test_export_that_cannot_be_is_refused(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prefix_run: Path,
) -> None:
    assert export(prefix_run, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def prefix_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("prefix"), *options("prefix"))
    run_dir(folder)
    return folder


def test_export_before_the_end_needs_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(tmp_path / "runs", *options("head"))
    assert export(folder, tmp_path / "out") == 2
    assert "is not done, so its best step is not known yet" in capsys.readouterr().err


def test_full_run_has_no_adapter(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "runs", *options("full"), "train.steps=2")
    run_dir(folder)
    loaded = rebuild(folder, 2)
    with pytest.raises(UserError, match="there is no adapter to write; export the model"):
        loaded.tuning.save_adapter(loaded.model, tmp_path / "out", "base", "causal")


def test_first_order_run_is_exported_at_its_best_step(tmp_path: Path) -> None:
    given = ("optimizer=adamw", "optimizer.lr=1e-2", "model/tuning=lora", "train.steps=4")
    folder = prepare(tmp_path / "runs", *given, "train.eval_every=2")
    best = run_dir(folder)["best"]
    kept = load_tensors(folder / "best.safetensors")[0]
    assert kept
    assert all("lora_" in name for name in kept)
    assert export(folder, tmp_path / "out") == 0
    got = scores_of(folder, load_export(folder, tmp_path / "out"))
    assert got["test/accuracy"] == best["test/accuracy"]
    assert got["test/loss"] == pytest.approx(best["test/loss"], abs=2e-6)
