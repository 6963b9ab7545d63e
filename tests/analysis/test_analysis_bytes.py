"""Every table, figure and file of a report is the same from run folders and from wandb files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import analysis_synth as synth
import pytest
import wandb_reference as plain

from analysis import figures
from analysis.contents import contents, csv_files
from analysis.methods import group_runs
from analysis.runs import Runs, read, read_local
from analysis.targets import Target, parse_target
from tests.analysis.same_bytes import reports

Rows = list[dict[str, Any]]
#: What each of them is as far as tables go: config changes, forwards a step, seconds a step.
METHODS: dict[str, tuple[dict[str, Any], int, float]] = {
    "mezo": ({}, 2, 0.010),
    "half": (synth.masked("random", 0.5), 2, 0.011),
    "most": (synth.masked("random", 0.75), 2, 0.012),
    "small": (synth.masked("small_weights", 0.75), 2, 0.013),
    "adamw": (synth.ADAMW, 3, 0.031),
}
FIGURES = ("convergence", "speedup", "sparsity", "profile")
NAN = float("nan")


def _full(lines: Rows, size: int, *, zeroth: bool) -> Rows:
    """The columns that only real runs have, with numbers that need all their digits."""
    for number, row in enumerate(lines):
        step = row["step"]
        row |= {"gpu_seconds": row["train_seconds"] / 3, "examples_total": 16 * step}
        row |= {"dev/f1": row["dev/accuracy"] / 1.1, "perf/eval_peak_bytes": size * 7}
        if "test/accuracy" in row:
            row["test/f1"] = row["test/accuracy"] / 1.1
        if not number:
            row |= {"model/num_params": size, "model/weight_rms": 0.1 + 0.2 / size}
            row |= {"perf/base_bytes": size // 3}
            continue
        row |= {
            f"perf/{part}_seconds": 1e-3 / (3 + i + number)
            for i, part in enumerate(("data", "perturb", "update", "transfer", "evaluation"))
        }
        row["perf/peak_bytes"] = size * 6 + 4096 * number
        if zeroth:
            row |= {"train/loss_plus": row["train/loss"] + 1e-3 / 7, "zo/moved_share": 0.9}
            row |= {"train/loss_minus": row["train/loss"] - 1e-3 / 7, "zo/nonfinite_total": 0}
            row["zo/zero_coefficient_share"] = 1 / (30 + number)
    return lines


def _sweep() -> list[tuple[dict[str, Any], list[Rows]]]:
    """Config and the rows of each attempt: two sizes of model, two tasks, rates, seeds, damage."""
    plans = []
    for size, model, task in (
        (10**6, "opt_13b", "sst2"),
        (10**6, "opt_13b", "rte"),
        (3 * 10**6, "tiny", "sst2"),
    ):
        lift = 0.07 * (task == "rte")
        about = {"model.name": model, "task.name": task, "task.num_dev": 500}
        chosen = METHODS if model == "opt_13b" else {"mezo": METHODS["mezo"]}
        for place, (changes, forwards, pace) in enumerate(chosen.values()):
            for seed in range(3):
                end = 0.7 + lift + place / 90 + seed / 70
                curve = [0.5, 0.55, end - 0.05 * (seed == 1), end, end - seed / 300]
                lines = synth.rows(curve, forwards=forwards, seconds=pace / 3, test=end - 0.01)
                cfg = synth.config(seed, **about, **changes)
                plans.append((cfg, [_full(lines, size, zeroth=forwards == 2)]))
        for calibrate in (False, True):
            lines = synth.rows([0.51 + lift], test=0.52 + lift)
            cfg = synth.config(0, **about, **synth.zero_shot(calibrate))
            plans.append((cfg, [_full(lines, size, zeroth=False)]))
    about = {"model.name": "tiny", "task.name": "sst2", "task.num_dev": 500}
    for rate, end in ((1e-3, 0.61), (1e-5, 0.58)):  # a grid; the other rates are worse
        lines = synth.rows([0.5, 0.52, 0.55, end, end], test=end)
        cfg = synth.config(0, **about, **{"optimizer.lr": rate})
        plans.append((cfg, [_full(lines, 10**6, zeroth=True)]))
    cfg = synth.config(3, **about)  # killed, gone on with, overlapping steps
    first, second = (synth.rows([0.5, 0.6, 0.61 + n / 9, 0.7, 0.72], seconds=0.01 + n, test=0.7,
                                attempt=n + 1) for n in range(2))  # fmt: skip
    plans.append((cfg, [first[:3], second[2:]]))
    cfg = synth.config(4, **about)  # never finished
    plans.append((cfg, [synth.rows([0.5, 0.6, NAN])]))
    cfg = synth.config(5, **about, **METHODS["half"][0])  # diverged
    plans.append((cfg, [synth.rows([0.5, 0.6, NAN, NAN, NAN], test=0.5)]))
    return plans


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for number, (cfg, attempts) in enumerate(_sweep()):
        run_id = f"{number:04x}"
        lines = [row for attempt in attempts for row in attempt]
        folder = synth.write_local(root, run_id, cfg, lines)
        for start, attempt in enumerate(attempts):
            path = folder / "wandb" / f"offline-run-{start}-{run_id}" / f"run-{run_id}.wandb"
            path.parent.mkdir(parents=True)
            path.write_bytes(plain.run_file(run_id, cfg, attempt, start))
    return root


def test_every_file_of_a_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One form of each figure, to be quick: PNG and PDF draw the same things.
    monkeypatch.setattr(figures, "_METADATA", {"svg": figures._METADATA["svg"]})
    local, wandb = reports(root, tmp_path, []).values()
    assert local.keys() == wandb.keys() >= {"report.md", "index.html", "tables.tex"}
    for name, content in local.items():
        assert content == wandb[name], name
    drawn = {name for name in local if name.endswith(".svg")}
    assert drawn in (set(), {f"{name}.svg" for name in FIGURES})  # matplotlib is an extra
    for name in (name for name in local if name.endswith(".csv")):
        assert len(list(csv.DictReader(io.StringIO(local[name].decode())))) >= 4, name


def test_every_kind_of_table_is_there(root: Path) -> None:
    """So that the comparison above is one of all of them."""
    runs = read_local(root)
    groups, notes = group_runs(runs)
    made = contents(groups, runs, notes)
    titles = [table.title for details in made.details for table in details]
    titles += [table.title for table in made.overall]
    for words in ("Cost of reaching", "after so many forwards", "Paired", "Sparsity sweep", "Time",
                  "Where a step's time goes", "Learning rates", "published", "Over", "profile",
                  "Memory", "Health"):  # fmt: skip
        assert any(words.lower() in title.lower() for title in titles), (words, titles)


@pytest.mark.parametrize(
    ("baseline", "target", "metric"),
    [
        ("adamw", parse_target("fraction:0.9"), "f1"),
        (None, parse_target("absolute:0.4"), "loss"),
    ],
)
def test_whatever_is_asked_for(
    root: Path, baseline: str | None, target: Target, metric: str | None
) -> None:
    def made(source: str) -> tuple[Any, dict[str, str]]:
        runs: Runs = read(root, source)
        groups, notes = group_runs(runs, baseline, target, metric)
        found = contents(groups, runs, notes)
        return (found.mains, found.details, found.overall, found.notes), csv_files(groups, runs)

    local, wandb = made("local"), made("wandb")
    assert local == wandb
    assert local[0][0]
