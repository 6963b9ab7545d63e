"""Tables and files of the report, on curves whose results are worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import analysis_synth as synth
import pytest

from analysis import convergence, speedup
from analysis.cli import report
from analysis.methods import Group, group_runs
from analysis.report import build
from analysis.runs import read_local
from analysis.tables import Table, csv_text, markdown, rate, text
from zolab.errors import UserError
from zolab.tracking.schema import BACKPROP_FORWARDS

CSVS = ("convergence.csv", "speedup.csv", "time_memory.csv")
NAN = float("nan")


def _runs(root: Path, plans: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Path:
    for number, (cfg, lines) in enumerate(plans):
        synth.write_local(root, f"{number:02d}", cfg, lines)
    return root


def _groups(root: Path, baseline: str | None = None) -> list[Group]:
    return group_runs(read_local(root), baseline)[0]


def _csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Baseline: final levels .7 and .9, mean .8, reached at steps 40 and 20: median 30.

    `random` reaches it at 10 in two of three seeds (median 10: 3×); `small_weights` in one of
    three (not reached); AdamW at 20 in its one seed with 3 forwards a step.
    """
    small, rand = synth.masked("small_weights", 0.75), synth.masked("random", 0.5)
    return _runs(
        tmp_path / "runs",
        [
            (synth.config(0), synth.rows([0.5, 0.6, 0.7, 0.75, 0.8], test=0.7)),
            (synth.config(1), synth.rows([0.5, 0.6, 0.8, 0.9, 0.8], test=0.9)),
            (synth.config(0, **rand), synth.rows([0.5, 0.8, 0.8, 0.8, 0.6], test=0.8)),
            (synth.config(1, **rand), synth.rows([0.5, 0.9, 0.8, 0.8, 0.8], test=0.8)),
            (synth.config(2, **rand), synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)),
            (synth.config(0, **small), synth.rows([0.5, 0.8, 0.8, 0.8, 0.8], test=0.8)),
            (synth.config(1, **small), synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)),
            (synth.config(2, **small), synth.rows([0.5, 0.9, NAN, NAN, NAN])),
            (
                synth.config(0, **synth.ADAMW),
                synth.rows([0.5, 0.7, 0.8, 0.9, 0.9], forwards=3, seconds=0.04, test=0.9),
            ),
        ],
    )


def test_speedup_by_hand(by_hand: Path) -> None:
    (group,) = _groups(by_hand)
    assert group.baseline is not None
    assert group.baseline.label == "mezo"
    assert speedup.target_level(group) == pytest.approx(0.8)
    rows = {(row["method"], row["axis"]): row for row in speedup.csv_rows([group])}
    base = rows["mezo", "step"]
    assert (base["reached"], base["num_runs"], base["median_to_target"]) == (2, 2, 30)
    assert base["speedup"] == 1.0
    rand = rows["mezo + random 0.5", "step"]
    assert (rand["reached"], rand["num_runs"]) == (2, 3)
    assert (rand["median_to_target"], rand["speedup"]) == (10, 3.0)
    small = rows["mezo + small_weights 0.75", "step"]
    # The run that stopped without a final row had passed the level; it does not count.
    assert (small["reached"], small["num_runs"], small["run_ids"]) == (1, 2, "05 06")
    assert (small["median_to_target"], small["speedup"]) == (math.inf, 0.0)
    adamw = {axis: rows["adamw", axis] for axis in ("step", "forwards_total", "train_seconds")}
    assert [row["median_to_target"] for row in adamw.values()] == pytest.approx([20, 60, 0.8])
    # Baseline medians: 30 steps, 60 forwards, 0.3 s.
    assert [row["speedup"] for row in adamw.values()] == pytest.approx([1.5, 1.0, 0.375])


def test_speedup_table_says_what_it_means(by_hand: Path) -> None:
    (group,) = _groups(by_hand)
    table = speedup.speedup_table(group)
    assert table is not None
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["mezo + small_weights 0.75"][:3] == ["1 of 2 (+ 1 unfinished)", "∞", "not reached"]
    assert cells["mezo + random 0.5"][:3] == ["2 of 3", "10", "3.00×"]
    notes = " ".join(table.notes)
    assert "Target: dev accuracy 80.0 %, the mean over mezo's seeds" in notes
    assert f"one back-propagation step counts {BACKPROP_FORWARDS}" in notes
    assert "Counted as misses, they would change no speedup." in notes


def test_baseline_that_misses_its_own_mean_gives_a_bound(tmp_path: Path) -> None:
    finals = (0.5, 0.5, 0.95)  # mean .65: one seed of three gets there
    plans = [
        (synth.config(seed), synth.rows([0.4, 0.4, 0.4, 0.4, final], test=final))
        for seed, final in enumerate(finals)
    ]
    other = synth.config(0, **synth.masked("random", 0.5))
    plans.append((other, synth.rows([0.4, 0.7, 0.7, 0.7, 0.7], test=0.7)))
    (group,) = _groups(_runs(tmp_path, plans))
    table = speedup.speedup_table(group)
    assert table is not None
    assert table.rows[0][1:4] == ["1 of 3", "∞", "not reached"]
    assert table.rows[1][1:4] == ["1 of 1", "10", "≥ 4.00×"]
    assert any("whole budget stands in" in note for note in table.notes)


def test_convergence_by_hand(by_hand: Path) -> None:
    (group,) = _groups(by_hand)
    # Budget of the baseline: 80 forwards, evaluated every 20; 5 and 10 fall back to the start.
    assert convergence.budget_points(group) == [0, 20, 40, 80]
    rows = {
        (row["method"], row["point"], row["forwards"], row["key"]): row
        for row in convergence.csv_rows([group])
    }
    at_40 = rows["mezo", "budget", 40.0, "dev/accuracy"]
    assert (at_40["num_runs"], at_40["mean"]) == (2, pytest.approx(0.75))
    assert at_40["sd"] == pytest.approx(math.sqrt(2) * 0.05)
    # AdamW spends 30 forwards between evaluations: at 40 its last one within the budget is 30's.
    assert rows["adamw", "budget", 40.0, "dev/accuracy"]["mean"] == pytest.approx(0.7)
    best = rows["mezo + random 0.5", "best", None, "dev/accuracy"]
    assert best["mean"] == pytest.approx((0.8 + 0.9 + 0.7) / 3)
    test = rows["mezo", "test", None, "test/accuracy"]
    assert test["mean"] == pytest.approx(0.8)
    assert math.isnan(test["ci_low"])  # two seeds: no interval
    assert test["run_ids"] == "00 01"
    assert rows["mezo + small_weights 0.75", "test", None, "test/accuracy"]["num_runs"] == 2


def test_main_table(by_hand: Path) -> None:
    _runs_zero = synth.config(0, **synth.zero_shot(False))
    synth.write_local(by_hand, "90", _runs_zero, synth.rows([0.5], test=0.5))
    calibrated = synth.config(0, **synth.zero_shot(True))
    synth.write_local(by_hand, "91", calibrated, synth.rows([0.6], test=0.625))
    (group,) = _groups(by_hand)
    table = convergence.main_table(group)
    assert [row[0] for row in table.rows] == [
        "zero_shot", "zero_shot_calibrated", "mezo", "mezo + random 0.5",
        "mezo + small_weights 0.75", "adamw",
    ]  # fmt: skip
    cells = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert cells["mezo"]["test accuracy (%)"] == "80.0 ± 14.1"
    assert cells["mezo"]["95% interval"] == "n < 3"
    assert cells["mezo"]["over zero_shot"] == "+30.0 n < 3"
    assert cells["mezo"]["over zero_shot_calibrated"] == "+17.5 n < 3"
    assert cells["mezo + random 0.5"]["95% interval"] == "[70.0, 80.0]"
    assert cells["mezo + random 0.5"]["over zero_shot"] == "+26.7 [+20.0, +30.0]"
    assert cells["mezo + small_weights 0.75"]["seeds"] == "2 of 3"
    assert cells["adamw"]["test accuracy (%)"] == "90.0"
    budget = convergence.budget_table(group)
    assert budget is not None
    assert budget.rows[1][1:] == ["60.0"] * 4  # without training: a constant


def test_a_diverged_run_shows(tmp_path: Path) -> None:
    plans = [
        (synth.config(0), synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)),
        (synth.config(1), synth.rows([0.5, 0.6, NAN, NAN, NAN], test=0.5)),
        (
            synth.config(0, **synth.masked("random", 0.5)),
            synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7),
        ),
    ]
    runs = _runs(tmp_path / "runs", plans)
    result = build(runs, tmp_path / "out")
    last = [r for r in _csv(tmp_path / "out" / "convergence.csv") if r["point"] == "last"]
    mezo = next(r for r in last if r["method"] == "mezo" and r["key"] == "dev/accuracy")
    assert (mezo["mean"], mezo["num_runs"], mezo["num_nonfinite"]) == ("nan", "2", "1")
    assert any("no finite level, so no speedup" in note for note in result.notes)
    assert "diverged" in (tmp_path / "out" / "report.md").read_text()
    figures = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>',
        (tmp_path / "out" / "index.html").read_text(),
    )
    assert figures
    for figure in figures:
        json.loads(figure, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_rate_is_chosen_on_dev_loss_and_shown(tmp_path: Path) -> None:
    # 1e-3 has the better test value and the worse dev loss; 1e-2 the best dev loss but lost a seed.
    plans = []
    for lr, level, test in ((1e-4, 0.7, 0.6), (1e-3, 0.6, 0.9), (1e-2, 0.9, 0.9)):
        for seed in range(2):
            lines = synth.rows([0.5, level, level, level, level], test=test)
            if lr == 1e-2 and seed:
                lines = lines[:3]
            plans.append((synth.config(seed, **{"optimizer.lr": lr}), lines))
    (group,) = _groups(_runs(tmp_path, plans))
    (method,) = group.methods
    assert (method.lr, len(method.done)) == (1e-4, 2)
    assert convergence.main_table(group).rows[0][-1] == "1e-4 (1 of 3)"
    table = convergence.rate_table(group)
    assert table is not None
    assert [row[1:] for row in table.rows] == [
        ["1e-4", "2", "0.300", "chosen"], ["1e-3", "2", "0.400", ""], ["0.01", "1", "0.100", ""]
    ]  # fmt: skip


def test_other_differences_make_other_methods(tmp_path: Path) -> None:
    lines = synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)
    plans = [
        (synth.config(0), lines),
        (synth.config(0, **{"optimizer.eps": 1e-2}), lines),
        (synth.config(1, **{"train.log_every": 5, "tracking.name": "wandb"}), lines),
        (synth.config(0, **{"task.name": "other"}), lines),
    ]
    groups = _groups(_runs(tmp_path, plans))
    assert [group.task for group in groups] == ["other", "toy"]
    labels = {method.label: len(method.done) for method in groups[1].methods}
    assert labels == {"mezo, eps 0.001": 2, "mezo, eps 0.01": 1}
    assert groups[0].baseline is not None
    assert groups[1].baseline is None  # "mezo" alone could be either
    named = _groups(tmp_path, "mezo, eps 0.01")
    assert named[1].baseline is not None
    assert named[1].baseline.label == "mezo, eps 0.01"


def test_unequal_grids_and_single_seed_curves(tmp_path: Path) -> None:
    plans = [
        (synth.config(0), synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)),
        (
            synth.config(1, **{"train.eval_every": 10}),
            [row for row in synth.rows([0.4, 0.5, 0.6, 0.6, 0.6], test=0.6) if row["step"] != 20],
        ),
    ]
    (group,) = _groups(_runs(tmp_path, plans))
    cost, centre, spread = convergence.mean_curve(group.methods[0], "dev/accuracy", "step")
    assert cost.tolist() == [0, 10, 30, 40]  # only where both seeds were evaluated
    assert centre == pytest.approx([0.45, 0.55, 0.65, 0.65])
    assert spread == pytest.approx([0.1 / math.sqrt(2)] * 4)


def test_time_and_memory(by_hand: Path, tmp_path: Path) -> None:
    build(by_hand, tmp_path / "out")
    rows = {row["method"]: row for row in _csv(tmp_path / "out" / "time_memory.csv")}
    assert float(rows["adamw"]["step_seconds"]) == pytest.approx(0.04)
    assert float(rows["mezo"]["forward_share"]) == pytest.approx(0.75)
    assert rows["adamw"]["forward_share"] == "nan"  # what was timed includes the backward pass
    assert float(rows["mezo"]["train_seconds"]) == pytest.approx(0.4)
    assert float(rows["mezo"]["peak_bytes"]) == 100 << 20
    assert "| adamw | 40.0 | 4.00 | – | 1.6 | 100 |" in (tmp_path / "out" / "report.md").read_text()


def test_nothing_depends_on_the_source(both: Path, tmp_path: Path) -> None:
    local = build(both, tmp_path / "local", source="local")
    wandb = build(both, tmp_path / "wandb", source="wandb")
    assert set(local.paths) == set(wandb.paths) >= {"report.md", "index.html", "tables.tex", *CSVS}
    for name in local.paths:
        assert local.paths[name].read_bytes() == wandb.paths[name].read_bytes(), name
    for name in CSVS:
        assert len(local.paths[name].read_text().splitlines()) > 2
    assert "0.30000000000000004" in local.paths["convergence.csv"].read_text()


def test_the_same_logs_give_the_same_bytes(both: Path, tmp_path: Path) -> None:
    first = build(both, tmp_path / "first")
    # Another process with another hash seed: nothing may hang on the order of a set.
    code = "import sys; from analysis.cli import report; sys.exit(report(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(both), "--out", str(tmp_path / "second")]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "over zero_shot" in done.stdout
    for name, path in first.paths.items():
        assert path.read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "second").iterdir()} == set(first.paths)


def test_files_and_terminal_text(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report([str(both), "--out", str(tmp_path / "out"), "--baseline", "mezo"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("test accuracy (%)") < printed.index("Cost of reaching dev accuracy")
    assert str(tmp_path / "out" / "index.html") in printed
    report_md = (tmp_path / "out" / "report.md").read_text()
    assert report_md.index("| method |") < report_md.index("![") < report_md.index("###")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("plotly.js v") == 1
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page.split("<script>\n/**")[0]) == []
    assert "loss is not finite" in printed  # why the unfinished run ended


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>|<b>`x`[a](b)\n$\\"
    lines = synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)
    changes = {"task.name": nasty, "model.name": "<img src=x onerror=alert(2)>"}
    plans = [
        (synth.config(0, **changes), lines),
        (synth.config(0, **changes, **synth.masked("<i>$m_", 0.5)), lines),
    ]
    runs = _runs(tmp_path / "runs", plans)
    result = build(runs, tmp_path / "out", source="local")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<i>" not in page.split("<script>\n/**")[0]
    assert "&lt;script&gt;alert(1)" in page
    report_md = (tmp_path / "out" / "report.md").read_text()
    assert "<script>" not in report_md
    assert "<img" not in report_md
    assert "](b)" not in report_md
    assert "\x1b" not in result.text


def test_bad_input_is_named(both: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"--baseline=mezzo.*did you mean 'mezo'.*there is mezo, mezo"
    ):
        build(both, out, baseline="mezzo")
    with pytest.raises(UserError, match=r"--metric=acuracy: .*'accuracy'.*there is accuracy, loss"):
        build(both, out, metric="acuracy")
    unfinished = _runs(tmp_path / "runs", [(synth.config(), synth.rows([0.5, 0.6]))])
    with pytest.raises(
        UserError, match=r"no finished run among 1: 00 \(unfinished, step 10 of 40\)"
    ):
        build(unfinished, out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--out"):
        build(both, tmp_path / "file")
    assert not out.exists()
    for words in (["--source", "cloud"], ["--sauce", "x"], ["more"], ["--baseline"]):
        with pytest.raises(UserError, match=r"^[^\n]+ \(see zolab report --help\)$"):
            report([str(both), "--out", str(out), *words])
    with pytest.raises(UserError, match=r"required: --out"):
        report([str(both)])
    assert not out.exists()


def test_a_named_metric_is_what_the_tables_compare(both: Path, tmp_path: Path) -> None:
    text = build(both, tmp_path, metric="loss").text
    assert "test loss (nats)" in text
    assert "accuracy" not in text.split("Cost of")[0].splitlines()[1]


def test_no_baseline_is_only_a_note(tmp_path: Path) -> None:
    lines = synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], forwards=3, test=0.7)
    runs = _runs(tmp_path / "runs", [(synth.config(0, **synth.ADAMW), lines)])
    result = build(runs, tmp_path / "out")
    assert any("called mezo: no speedup" in note for note in result.notes)
    assert len((tmp_path / "out" / "speedup.csv").read_text().splitlines()) == 1


def test_table_writers() -> None:
    table = Table("A | B", ["a", "b"], [["x|y", "1"], ["_z_ *q*", "\x1b[31m2"]], ["note <x>"])
    assert markdown(table).splitlines() == [
        "### A \\| B", "", "| a | b |", "|---|---:|", "| x\\|y | 1 |",
        "| \\_z\\_ \\*q\\* | [31m2 |", "", "<sub>note &lt;x&gt;</sub>  ",
    ]  # fmt: skip
    assert text(table).splitlines()[1].split() == ["a", "b"]
    assert "\x1b" not in text(table)
    assert [rate(lr) for lr in (2e-4, 1e-6, 1.5e-7, 0.01, 1.0, None)] == [
        "2e-4", "1e-6", "1.5e-7", "0.01", "1", "–"
    ]  # fmt: skip
    row = {"a": 0.1 + 0.2, "b": None, "c": 'q"x,', "d": NAN, "e": True, "f": 3, "g": math.inf}
    assert csv_text([row], list(row)) == (
        'a,b,c,d,e,f,g\n0.30000000000000004,,"q""x,",nan,true,3,inf\n'
    )
