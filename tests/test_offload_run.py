"""Cells whose weights stream: the same results, killed or not, with most of the model on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests import fake_hub
from tests.test_resume import ROOT, exact_rows, journal_text, kill_and_continue, prepare
from zolab import assets, compose
from zolab.checkpoint import weights_hash
from zolab.errors import UserError
from zolab.models.weight_files import convert
from zolab.optim.offload import Free
from zolab.run import replay, run_dir
from zolab.tracking.local import read_rows

MIXED = ("optimizer/placement=offload", "optimizer.placement.tier=cpu*1+disk")
SHORT = ("train.steps=9", "train.eval_every=4")
#: What is written down differently on purpose: where the weights were.
_NAMES = ("placement", "optimizer")


def test_a_streamed_cell_equals_one_in_memory(tmp_path: Path) -> None:
    options = (*SHORT, "sparsity=small_weights")
    whole = prepare(tmp_path / "a", *options, "optimizer/placement=paired")
    streamed = prepare(tmp_path / "b", *options, *MIXED)
    expected, got = run_dir(whole), run_dir(streamed)
    assert got["weights_hash"] == expected["weights_hash"]
    assert got["best"] == expected["best"]
    assert got["final"] == expected["final"]
    assert journal_text(streamed) == journal_text(whole)
    assert exact_rows(streamed) == exact_rows(whole)
    assert not (streamed / "offload").exists()  # work files are gone
    for step in (5, 9):
        out = tmp_path / f"model{step}"
        replay(streamed, step, out)
        replay(whole, step, tmp_path / f"other{step}")
        assert (out / "model.safetensors").read_bytes() == (
            tmp_path / f"other{step}" / "model.safetensors"
        ).read_bytes()


@pytest.mark.parametrize("every", [0, 2])
def test_killed_many_times_equals_undisturbed(every: int, tmp_path: Path) -> None:
    options = (*MIXED, f"optimizer.placement.write_back_every={every}", "train.steps=12")
    options += ("train.eval_every=5", "train.checkpoint_minutes=0") if every else ()
    whole = prepare(tmp_path / "whole", *options)
    broken = prepare(tmp_path / "broken", *options)
    expected = run_dir(whole)
    told = kill_and_continue(broken, kills=4, seed=every)
    got = json.loads((broken / "result.json").read_text())
    assert told.count("killed attempt") == 4, told
    assert got["weights_hash"] == expected["weights_hash"]
    assert got["best"] == expected["best"]
    assert journal_text(broken) == journal_text(whole)
    assert exact_rows(broken) == exact_rows(whole)
    assert not (broken / "offload").exists()


@pytest.mark.parametrize("tuning", ["lora", "prefix", "head", "bitfit"])
def test_a_frozen_base_streams(tuning: str, tmp_path: Path) -> None:
    options = (*SHORT, f"model/tuning={tuning}")
    whole = prepare(tmp_path / "a", *options, "optimizer/placement=paired")
    streamed = prepare(tmp_path / "b", *options, *MIXED)
    expected, got = run_dir(whole), run_dir(streamed)
    assert got["weights_hash"] == expected["weights_hash"]
    assert exact_rows(streamed) == exact_rows(whole)


def test_where_weights_lie_is_no_part_of_a_cell(tmp_path: Path) -> None:
    """Another tier continues the same cell."""
    first = prepare(tmp_path, *MIXED, *SHORT)
    other = prepare(
        tmp_path, "optimizer/placement=offload", "optimizer.placement.slots=2",
        "optimizer.placement.tier=cpu", f"optimizer.placement.folder={tmp_path}", *SHORT,
    )  # fmt: skip
    rounded = prepare(tmp_path, *MIXED, *SHORT, "optimizer.placement.transfer=int8")
    assert first == other
    assert rounded != first


def test_random_weights_are_mapped_from_the_run(tmp_path: Path) -> None:
    options = ("model.init=random", *SHORT)
    whole = prepare(tmp_path / "a", *options, "optimizer/placement=paired")
    streamed = prepare(tmp_path / "b", *options, *MIXED)
    expected = run_dir(whole)["weights_hash"]
    assert run_dir(streamed)["weights_hash"] == expected
    (streamed / "result.json").unlink()
    assert run_dir(streamed)["weights_hash"] == expected


def test_another_dtype_is_converted_file_by_file(tmp_path: Path) -> None:
    options = ("model.dtype=bfloat16", *SHORT)
    whole = prepare(tmp_path / "a", *options, "optimizer/placement=paired")
    streamed = prepare(tmp_path / "b", *options, *MIXED)
    assert run_dir(streamed)["weights_hash"] == run_dir(whole)["weights_hash"]
    source = Path(assets.model_dir("opt-prompt-2m")) / "model.safetensors"
    convert(source, tmp_path / "half.safetensors", torch.float16)
    before, after = load_file(source), load_file(tmp_path / "half.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight.half())
    with safe_open(tmp_path / "half.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("num_files", [1, 2])
def test_torch_files_are_converted_to_files_that_can_be_mapped(
    num_files: int, tmp_path: Path
) -> None:
    source = Path(assets.model_dir("opt-prompt-2m"))
    weights = load_file(source / "model.safetensors")
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if num_files == 1:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        place = {n: f"pytorch_model-{i % 2 + 1}-of-2.bin" for i, n in enumerate(weights)}
        for file in set(place.values()):
            torch.save({n: w for n, w in weights.items() if place[n] == file}, folder / file)
        index = {"metadata": {}, "weight_map": place}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    whole = prepare(tmp_path / "a", *SHORT, "optimizer/placement=paired")
    streamed = prepare(tmp_path / "b", f"model.path={folder}", *SHORT, *MIXED)
    assert run_dir(streamed)["weights_hash"] == run_dir(whole)["weights_hash"]


def test_a_model_of_the_hub_streams_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.fill(fake_hub.use(tmp_path / "cache", monkeypatch))
    hub = ("model.path=facebook/opt-125m", "model.dtype=bfloat16")
    whole = prepare(tmp_path / "a", *SHORT, "optimizer/placement=paired", "model.dtype=bfloat16")
    streamed = prepare(tmp_path / "b", *hub, *SHORT, *MIXED)
    assert run_dir(streamed)["weights_hash"] == run_dir(whole)["weights_hash"]


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_from_disk_most_of_the_model_is_never_in_memory(limited: bool, tmp_path: Path) -> None:
    """Peak of anonymous resident memory, whole run, against the model's bytes: at most half.

    Limited: in a control group that gives it no more than that, pages of files included. A torch
    built for CUDA takes nearly half before it begins; there the libraries do not count.
    """
    command = [sys.executable, "-m", "tests.offload_driver", str(tmp_path)]
    command += ["--limit"] if limited else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if found["group"]:
        Path(found["group"]).rmdir()  # empty now
    elif limited:
        pytest.skip("no control group can be made here")
    assert found["steps"] == 2
    assert found["moved"]
    assert found["peak_anonymous"] <= found["imports"] + 0.2 * found["model_bytes"], found
    if found["imports"] <= 0.3 * found["model_bytes"]:
        assert found["peak_anonymous"] <= 0.5 * found["model_bytes"], found


# -- refusals --------------------------------------------------------------------------------------


def test_a_plan_that_does_not_fit_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, tier, said in (
        (Free(None, 10**5, 10**12), "cpu", r"CPU memory is too small: [\d.]+ MB needed, .* free"),
        (Free(None, 10**12, 10**5), "disk", r"placement\.folder is too small: .* 100\.0 kB free"),
    ):
        monkeypatch.setattr(
            "zolab.optim.placements.offload.free_memory", lambda *_, free=free: free
        )
        folder = prepare(
            tmp_path / tier, "optimizer/placement=offload", f"optimizer.placement.tier={tier}"
        )
        with pytest.raises(UserError, match=said):
            run_dir(folder)
        assert not read_rows(folder / "attempts" / "1" / "journal.jsonl")
        assert not (folder / "header.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("optimizer=mezo_svrg",), "offload with optimizer mezo_svrg: it holds a second copy"),
        (("optimizer=forward_grad",), "forward-gradient"),
        (("optimizer=zo_block_wise",), "offload with optimizer zo_block_wise: block-wise steps"),
        (
            ("optimizer=mezo_adam", "optimizer.placement.tier=disk"),
            r"placement\.tier = 'disk': zolab\.optim\.Adam keeps numbers.*history=replayed",
        ),
        (("optimizer.placement.tier=ram",), r"placement\.tier = 'ram': expected auto, cpu, disk"),
        (("optimizer.placement.transfer=int4",), r"placement\.transfer = 'int4'"),
    ],
)
def test_what_cannot_go_together_is_refused_when_planned(options: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose.check(compose.compose([*options, "optimizer/placement=offload"]))


def test_a_model_that_cannot_be_paired_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.opt import modeling_opt

    forward = modeling_opt.OPTDecoderLayer.forward

    def flipped(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states + hidden_states.flip(0), *args, **kwargs)

    monkeypatch.setattr(modeling_opt.OPTDecoderLayer, "forward", flipped)
    folder = prepare(tmp_path, *MIXED)
    with pytest.raises(UserError, match=r"placement offload cannot evaluate this model"):
        run_dir(folder)
    assert not read_rows(folder / "attempts" / "1" / "journal.jsonl")


def test_the_hash_reads_what_is_on_disk(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = prepare(tmp_path / "runs", *MIXED, "train.steps=2")
    result = run_dir(folder)
    replay(folder, 2, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert weights_hash(model) == result["weights_hash"]
