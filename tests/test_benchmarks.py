"""`zolab bench` runs, writes what it promises, and finds a planted copy of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.golden.batches import loss_of
from tests.golden.repeat import bars_of, near
from tests.golden.start import build, summary
from tests.golden.trace import read_trace
from zolab.bench import memory
from zolab.bench.common import backends
from zolab.bench.official import OfficialStep, answer_loss
from zolab.errors import UserError
from zolab.optim import methods, native
from zolab.verbs.bench import PARTS, bench

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT / "tests" / "golden" / "traces"
SMALL = ["--shape", "small", "--rows", "2", "--tokens", "8", "--dtype", "float32"]
KEYS = {"scheme", "placement", "backend", "tuning", "direction", "sparsity", "dtype", "noise"}


@pytest.fixture(autouse=True)
def _leave_threads(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    yield
    torch.set_num_threads(threads)


def rows_of(out: Path, *argv: str) -> list[dict]:
    """Rows of a part, run at toy size; the file and its table are looked over."""
    assert bench([*argv, "--threads", "1", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["benchmark"] == argv[0]
    assert {"command", "device", "versions", "settings", "commit"} <= record.keys()
    assert str(out.parent) not in out.read_text()
    assert out.with_suffix(".md").read_text().count("\n|") >= len(record["rows"])
    return record["rows"]


@pytest.mark.skipif(not native.available(), reason="needs a C compiler to be fast enough")
def test_peaks_keep_their_targets(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOLAB_NATIVE", "1")
    schemes = ["in_place", "paired", "in_place+momentum", "paired+adam", "in_place+small_weights"]
    schemes += ["paired+random", "in_place+lozo_m", "in_place+svrg", "in_place+block_wise"]
    schemes += ["forward_grad"]
    options = [*SMALL, "--native", "1", "--in-process", "--scheme", *schemes]
    found = rows_of(tmp_path / "peaks.json", "memory", *options)
    rows = {row["scheme"]: row for row in found}
    assert list(rows) == ["inference", *schemes]
    assert rows["in_place"]["ratio_allocator"] <= 1.05
    assert rows["paired"]["ratio_allocator"] <= 1.15
    assert rows["in_place+momentum"]["state_bytes"] == rows["in_place"]["weight_bytes"]
    assert rows["paired+adam"]["state_bytes"] == 2 * rows["in_place"]["weight_bytes"]
    assert rows["in_place+block_wise"]["state_bytes"] == 0
    for row in found:
        assert not row["missed"], (row["scheme"], row["missed"], row["declared"])


def test_every_method_has_its_schemes():
    made = {name for name, _ in memory.METHODS.values()}
    assert made == {*methods.__all__, "MeZOSVRG"}
    known = {*memory.METHODS, *memory.FIRST_ORDER}
    assert {scheme.method for scheme in memory.SCHEMES.values()} == known


def test_back_propagation_keeps_its_gradients_and_moments(tmp_path):
    options = [*SMALL, "--in-process", "--native", "0", "--scheme", "sgd", "adamw"]
    none, sgd, adamw = rows_of(tmp_path / "peaks.json", "memory", *options)
    weights = none["weight_bytes"]
    assert sgd["allocator_bytes"] > none["allocator_bytes"] + weights
    moments = adamw["allocator_bytes"] - sgd["allocator_bytes"]
    assert 2.0 * weights < moments < 2.7 * weights, "two moments, and torch's scratch"
    assert sgd["of_declared"] is adamw["of_declared"] is None


def test_an_allocation_is_counted_to_the_byte():
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        a = torch.ones(1000)
        b = torch.ones(500)
        del a
        c = torch.ones(100)
    peak, live = memory._allocator_peak(profile)
    assert peak == 6000
    assert [block["bytes"] for block in live] == [4000, 2000]
    del b, c


def test_a_planted_copy_fails_the_program(tmp_path):
    command = [sys.executable, "-m", "zolab", "bench", "memory", *SMALL, "--native", "1"]
    command += ["--scheme", "in_place", "--plant"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    missed = next(line for line in done.stdout.splitlines() if line.startswith("MISSED in_place"))
    assert "allocator" in missed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("model", "dtype"), [("tiny", "bfloat16"), ("embedded", "float32")])
def test_step_times_are_ratios_with_quartiles(model, dtype, tmp_path):
    options = ["--model", model, "--rows", "2", "--tokens", "8", "--steps", "1", "--rounds", "2"]
    options += ["--dtype", dtype, "--noise", "gauss8", "--backend", "torch"]
    rows = rows_of(tmp_path / "times.json", "step", *options)
    assert [(row["scheme"], row["placement"]) for row in rows] == [
        *(("mezo", p) for p in ("in_place", "paired")),
        *(("sparse_mezo", p) for p in ("in_place", "paired")),
        *(("r_mezo", p) for p in ("in_place", "paired")),
        *((name, "paired") for name in ("lora", "lozo", "subzero")),
        ("official", "in_place"),
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert (row["dtype"], row["backend"]) == (dtype, "torch")
        low, high = row["fraction_quartiles"]
        assert 0.0 < low <= row["fraction_of_limit"] <= high
        slow, fast = row["official_quartiles"]
        assert 0.0 < slow <= row["official_ratio"] <= fast
        assert ("fraction_of_doubled" in row) == (row["scheme"] in ("lora", "lozo", "subzero"))
        assert ("mezo_ratio" in row) == (row["scheme"] in ("sparse_mezo", "r_mezo"))
        if "mezo_ratio" in row:
            slow, fast = row["mezo_quartiles"]
            assert 0.0 < slow <= row["mezo_ratio"] <= fast
    assert [row["sparsity"] for row in rows if row["placement"] == "in_place"][1:3] == [0.8, 0.97]
    assert {row["scheme"]: row["rank"] for row in rows if row["rank"]} == {"lozo": 2, "subzero": 48}


def test_a_step_is_timed_at_the_ranks_asked_for(tmp_path):
    options = [
        "--model",
        "tiny",
        "--rows",
        "2",
        "--tokens",
        "8",
        "--rounds",
        "1",
        "--rank",
        "1",
        "3",
    ]
    options += ["--dtype", "float32", "--scheme", "lozo", "subzero", "--backend", "torch"]
    rows = rows_of(tmp_path / "times.json", "step", *options)
    assert [(row["scheme"], row["rank"]) for row in rows] == [
        ("lozo", 1), ("lozo", 3), ("subzero", 1), ("subzero", 3), ("official", None)
    ]  # fmt: skip


def test_the_official_loss_is_that_of_the_last_token():
    logits = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
    lengths = [6, 4, 2]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    rows = [logits[i, n - 2] for i, n in enumerate(lengths)]
    said = torch.tensor([ids[i, n - 1] for i, n in enumerate(lengths)])
    expected = torch.nn.functional.cross_entropy(torch.stack(rows), said)
    assert torch.allclose(answer_loss(logits, ids, mask), expected)


@pytest.mark.parametrize("name", ["mezo_opt_ft_lm_f64_seed0", "mezo_llama_ft_lm_f32_seed0"])
def test_the_official_step_is_that_of_the_recorded_program(name):
    trace = read_trace(TRACES / f"{name}.json")
    model, named = build(trace)
    official = OfficialStep([named[n] for n in trace.order], trace.hyper["lr"], 1e-3)
    bars = bars_of(trace)
    for number, want in enumerate(trace.steps):
        closure = loss_of(trace, model, number, [])
        plus, minus, grad = official(lambda c=closure: float(c(1)[0]), want["seeds"][0])
        near([plus, minus], want["losses"], bars.loss, "losses")
        near([grad], [want["projected_grad"]], bars.slope * max(1, abs(grad)), "projected_grad")
        for key, numbers in want["params"].items():
            near(summary(named[key])[2:], numbers[2:], bars.param, key)


def test_offload_measures_every_depth(tmp_path):
    options = ["--shape", "tiny", "--layers", "2", "4", "--batch", "1x8", "--dtype", "float32"]
    rows = rows_of(tmp_path / "offload.json", "offload", *options, "--steps", "1", "--copy-mb", "1")
    assert [row["layers"] for row in rows] == [2, 4]
    assert rows[1]["layer_bytes"] == 2 * rows[0]["layer_bytes"]
    for row in rows:
        assert row["bound_seconds"] == max(row["compute_seconds"], row["transfer_seconds"])
        assert row["in_memory_seconds"] > 0
        assert f"{row['layers']} on cpu" in row["plan"]
    assert rows[0]["published_gb"] is None


def test_mistakes_are_told_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # with it, its kernels take CPU weights
    for argv, said in (
        (["stepp"], "did you mean 'step'?"),
        (["step", "--threads", "0"], "--threads 0"),
        (["step", "--device", "tpu9"], "--device tpu9"),
        (["step", "--json", str(tmp_path / "no" / "x.json")], "--json"),
        (["step", "--dtype", "float8"], "--dtype"),
        (["step", "--rank", "0"], "--rank 0"),
        (["step", "--backend", "triton"], "--backend triton: not on this cpu"),
        (["kernels", "--backend", "triton"], "--backend triton: not on this cpu"),
    ):
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            bench(argv)
    assert list(tmp_path.iterdir()) == []
    assert backends(torch.device("cpu"))[-1] == "torch"


def test_help_lists_every_part(capsys):
    assert bench([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {part} " in printed for part in PARTS)


def test_small_parts_measure_what_they_say(tmp_path):
    rows = rows_of(tmp_path / "k.json", "kernels", "--elements", "5000", "--rounds", "1")
    assert {row["backend"] for row in rows} == set(backends(torch.device("cpu")))
    assert all(row["milliseconds_per_100m"] > 0 for row in rows)

    rows = rows_of(
        tmp_path / "d.json", "drift", "--dtype", "float32", "bfloat16", "--side", "64",
        "--steps", "1", "5", "--updates", "20", "--size", "1e-4",
    )  # fmt: skip
    by = {(row["placement"], row["dtype"]): row for row in rows}
    assert by["paired", "bfloat16"]["drift"]["5"] == 0.0
    assert by["in_place official", "bfloat16"]["drift"]["5"] > 1e-5
    assert by["in_place", "float32"]["updates"]["0.0001"] == {"slope": 1.0, "noise": 0.0}
    assert abs(by["paired", "bfloat16"]["updates"]["0.0001"]["slope"] - 1.0) < 0.05

    options = ["--model", "tiny", "--rounds", "1", "--linear", "onednn"]
    rows = rows_of(tmp_path / "f.json", "forward", *options)
    assert [row["trick"] for row in rows if row["dtype"] == "float32"] == [
        "scored positions only",
        "both signs in one batch",
        "linear layers by oneDNN",
        "layers below once: the last layer moves",
        "layers below once: the last third of the layers moves",
        "a prompt once for its answers",
        "a prompt once for its answers: a step in_place",
        "a prompt once for its answers: a step paired",
        "layers below kept: the last layer moves",
        "layers below kept: the last third of the layers moves",
        "layers below kept: the output layer moves",
    ]

    rows = rows_of(
        tmp_path / "l.json", "logging", "--steps", "40", "--wandb", "off", "--pause", "0"
    )
    assert [row["part"] for row in rows][-2:] == ["metrics row", "all"]
    assert rows[-1]["microseconds_a_step"] == pytest.approx(
        sum(row["microseconds_a_step"] for row in rows[:-1]), abs=0.05
    )


@pytest.mark.slow  # a run of its own process
def test_startup_reads_the_records_of_a_run(tmp_path):
    options = ["--runs", "1", "--steps", "2", "debug=smoke"]
    (row,) = rows_of(tmp_path / "s.json", "startup", *options)
    assert row["steps"] == 2
    assert 0.0 < row["first_step_seconds"] <= row["whole_seconds"]
    assert 0.0 < row["forward_share"] <= 1.0
