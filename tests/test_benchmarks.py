"""The benchmark programs run, write what they promise, and find a planted copy of the model."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zolab.optim import methods, native

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = ["--shape", "small", "--rows", "2", "--tokens", "8", "--dtype", "float32"]


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark as its command line does; leave threads and backend as they were."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in ("common", "peak_memory", "schemes", "step_time", "offload"):
        sys.modules.pop(name, None)


@pytest.fixture
def peak_memory(load):
    return load("peak_memory")


@pytest.mark.skipif(not native.available(), reason="needs a C compiler to be fast enough")
def test_peaks_keep_their_targets(peak_memory, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOLAB_NATIVE", "1")
    out = tmp_path / "peaks.json"
    schemes = ["in_place", "paired", "in_place+momentum", "paired+adam", "in_place+small_weights"]
    schemes += ["paired+random", "in_place+lozo_m", "in_place+svrg", "in_place+block_wise"]
    schemes += ["forward_grad"]
    argv = [*SMALL, "--native", "1", "--in-process", "--threads", "1", "--json", str(out)]
    argv += ["--scheme", *schemes]
    assert peak_memory.main(argv) == 0
    record = json.loads(out.read_text())
    assert {"benchmark", "command", "device", "versions", "settings", "rows"} <= record.keys()
    assert str(tmp_path) not in out.read_text()
    rows = {row["scheme"]: row for row in record["rows"]}
    assert list(rows) == ["inference", *schemes]
    assert rows["in_place"]["ratio_allocator"] <= 1.05
    assert rows["paired"]["ratio_allocator"] <= 1.15
    assert rows["in_place+momentum"]["state_bytes"] == rows["in_place"]["weight_bytes"]
    assert rows["paired+adam"]["state_bytes"] == 2 * rows["in_place"]["weight_bytes"]
    assert rows["in_place+block_wise"]["state_bytes"] == 0
    for row in record["rows"]:
        assert not row["missed"], (row["scheme"], row["missed"], row["declared"])


def test_every_method_has_its_schemes(peak_memory):
    made = {name for name, _ in peak_memory.METHODS.values()}
    assert made == {*methods.__all__, "MeZOSVRG"}
    assert {scheme.method for scheme in peak_memory.SCHEMES.values()} == set(peak_memory.METHODS)


def test_an_allocation_is_counted_to_the_byte(peak_memory):
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        a = torch.ones(1000)
        b = torch.ones(500)
        del a
        c = torch.ones(100)
    peak, live = peak_memory._allocator_peak(profile)
    assert peak == 6000
    assert [block["bytes"] for block in live] == [4000, 2000]
    del b, c


def test_a_planted_copy_fails_the_program(tmp_path):
    command = [sys.executable, str(FOLDER / "peak_memory.py"), *SMALL, "--native", "1"]
    command += ["--scheme", "in_place", "--plant"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    missed = next(line for line in done.stdout.splitlines() if line.startswith("MISSED in_place"))
    assert "allocator" in missed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["tiny", "embedded"])
def test_step_times_are_ratios_with_quartiles(load, model, tmp_path):
    out = tmp_path / "times.json"
    argv = ["--model", model, "--rows", "2", "--tokens", "8", "--steps", "1", "--rounds", "2"]
    argv += ["--native", "0", "--noise", "gauss8", "--threads", "1", "--json", str(out)]
    assert load("step_time").main(argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["scheme"], row["placement"]) for row in rows] == [
        ("mezo", "in_place"),
        ("mezo", "paired"),
        ("sparse_mezo", "in_place"),
        ("sparse_mezo", "paired"),
        ("official", "in_place"),
    ]
    for row in rows:
        assert row["dtype"] == "float32"
        assert row["tuning"] == "full"
        low, high = row["fraction_quartiles"]
        assert 0.0 < low <= row["fraction_of_limit"] <= high
    assert [row["sparsity"] for row in rows] == [0.0, 0.0, 0.75, 0.75, 0.0]
    assert {row["backend"] for row in rows} == {"torch"}


def test_the_official_step_moves_along_its_own_noise(load, monkeypatch):
    step_time, common = load("step_time"), load("common")
    monkeypatch.setattr(step_time, "LR", 0.1)
    model = common.random_opt("tiny", "float32", torch.device("cpu"))
    before = [param.detach().clone() for param in model.parameters()]
    batches = common.synthetic_batches(1, 2, 8, 1024, torch.device("cpu"))
    scorer = step_time.CausalScorer(model, pad_id=1)
    step_time.OfficialStep(model)(step_time.BatchLoss(scorer, batches))
    torch.manual_seed(1)
    z = [torch.normal(0.0, 1.0, param.shape) for param in before]
    moved = [after.detach() - old for after, old in zip(model.parameters(), before, strict=True)]
    size = sum(float((m * n).sum()) for m, n in zip(moved, z, strict=True))
    size /= sum(float(n.square().sum()) for n in z)
    assert abs(size) > 1e-4
    for m, n in zip(moved, z, strict=True):
        assert torch.allclose(m, size * n, atol=1e-6 + 0.01 * abs(size))


def test_offload_measures_every_depth(load, tmp_path):
    out = tmp_path / "offload.json"
    argv = ["--shape", "tiny", "--layers", "2", "4", "--batch", "1x8", "--dtype", "float32"]
    argv += ["--steps", "1", "--copy-mb", "1", "--json", str(out)]
    assert load("offload").main(argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["layers"] for row in rows] == [2, 4]
    assert rows[1]["layer_bytes"] == 2 * rows[0]["layer_bytes"]
    for row in rows:
        assert row["bound_seconds"] == max(row["compute_seconds"], row["transfer_seconds"])
        assert row["in_memory_seconds"] > 0
        assert f"{row['layers']} on cpu" in row["plan"]
    assert rows[0]["published_gb"] is None
