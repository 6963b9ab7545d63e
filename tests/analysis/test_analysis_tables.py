"""Tables over tasks, sparsities and published numbers; LaTeX, figures and targets of a report."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import analysis_synth as synth
import pytest

from analysis import across, cost, figures, latex, plots, reproduction, speedup, stats
from analysis.methods import Group, group_runs
from analysis.paper.make import yaml_files
from analysis.publish import publish
from analysis.report import build
from analysis.runs import read, read_local
from analysis.tables import Table
from analysis.targets import parse_target
from zolab.errors import UserError

RANDOM = synth.masked("random", 0.5)


def _write(root: Path, plans: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Path:
    for number, (cfg, lines) in enumerate(plans):
        synth.write_local(root, f"{number:02d}", cfg, lines)
    return root


def _groups(root: Path, **options: Any) -> list[Group]:
    return group_runs(read_local(root), **options)[0]


def _flat(level: float, **options: Any) -> list[dict[str, Any]]:
    return synth.rows([0.5, level, level, level, level], test=level, **options)


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    """Test accuracy: task a: mezo .6 .7, random .7 .8; task b: mezo .8 .9, random .6 .9."""
    plans = []
    for task, method, levels in (
        ("a", {}, (0.6, 0.7)),
        ("a", RANDOM, (0.7, 0.8)),
        ("b", {}, (0.8, 0.9)),
        ("b", RANDOM, (0.6, 0.9)),
    ):
        for seed, level in enumerate(levels):
            plans.append((synth.config(seed, **{"task.name": task}, **method), _flat(level)))
    return _write(tmp_path / "runs", plans)


def test_over_tasks_by_hand(two_tasks: Path) -> None:
    (tasks,) = across.task_sets(_groups(two_tasks))
    rows = {row["method"]: row for row in across.task_rows([tasks])}
    mezo, rand = rows["mezo"], rows["mezo + random 0.5"]
    # All four runs of mezo: .6 .7 .8 .9, one cut at each end.
    assert (mezo["iqm"], rand["iqm"]) == pytest.approx((0.75, 0.75))
    assert (mezo["mean_rank"], rand["mean_rank"]) == (1.5, 1.5)  # each is first on one task
    # Task a: .7 ties .7 and beats .6, .8 beats both: 3.5 of 4. Task b: .9 beats .8, ties .9: 1.5.
    assert rand["p_better"] == pytest.approx((3.5 / 4 + 1.5 / 4) / 2)
    assert math.isnan(mezo["p_better"])
    assert mezo["run_ids"] == "00 01 04 05"
    table = across.task_table(tasks)
    assert table.headers[-1] == "P(better than mezo)"
    assert table.rows[0][-1] == "–"


def test_profile_over_tasks(two_tasks: Path) -> None:
    (tasks,) = across.task_sets(_groups(two_tasks))
    labels, costs = across.profile_costs(tasks)
    # Target a: .65, mezo reaches it in 1 of 2 runs (a miss), random in both at 20 forwards.
    # Target b: .85, each in 1 of 2 (misses): nobody.
    assert labels == ["mezo", "mezo + random 0.5"]
    assert costs.tolist() == [[math.inf, 20.0], [math.inf, math.inf]]
    table = across.profile_table(tasks)
    assert table is not None
    assert [row[1:] for row in table.rows] == [["0%"] * 5, ["50%"] * 5]


def test_a_method_missing_on_a_task_is_left_out(two_tasks: Path) -> None:
    synth.write_local(two_tasks, "99", synth.config(0, **{"task.name": "a"}, **synth.ADAMW),
                      _flat(0.9, forwards=3))  # fmt: skip
    (tasks,) = across.task_sets(_groups(two_tasks))
    assert tasks.labels == ("mezo", "mezo + random 0.5")
    assert across.task_sets(_groups(two_tasks)[:1]) == []


def test_paired_table_uses_shared_seeds_only(two_tasks: Path) -> None:
    synth.write_local(two_tasks, "98", synth.config(7, **{"task.name": "a"}, **RANDOM), _flat(0.1))
    group = _groups(two_tasks)[0]
    (row,) = across.paired_rows([group])
    assert (row["num_pairs"], row["wins"], row["losses"]) == (2, 2, 0)
    assert row["mean_difference"] == pytest.approx(0.1)
    assert row["run_ids"] == "02-00 03-01"
    table = across.paired_table(group)
    assert table is not None
    assert table.rows[0][1:4] == ["+10.0 ± 0.0", "2 / 0 / 0", "2"]
    assert "cannot be below 0.5" in table.notes[0]


def test_sparsity_sweep(tmp_path: Path) -> None:
    plans = [(synth.config(0), _flat(0.7))]
    for share, level in ((0.25, 0.75), (0.75, 0.8)):
        plans.append((synth.config(0, **synth.masked("small_weights", share)), _flat(level)))
    plans.append((synth.config(0, **synth.masked("random", 0.5)), _flat(0.6)))  # one share: none
    (group,) = _groups(_write(tmp_path, plans))
    table = across.sparsity_table(group)
    assert table is not None
    assert table.headers == ["method", "0", "0.25", "0.75"]
    assert table.rows == [["mezo + small_weights", "70.0", "75.0", "80.0"]]
    drawn = figures.static_figures([group], plots.colours([group]))
    assert {"sparsity.svg", "sparsity.png", "sparsity.pdf"} <= set(drawn)


def test_targets_change_the_level(two_tasks: Path) -> None:
    for rule, level in (("final", 0.65), ("fraction:0.5", 0.575), ("absolute:0.62", 0.62)):
        group = _groups(two_tasks, target=parse_target(rule))[0]
        assert speedup.target_level(group) == pytest.approx(level)
    reached = {row["method"]: row["reached"] for row in speedup.csv_rows([group])}
    assert reached == {"mezo": 1, "mezo + random 0.5": 2}


def test_parts_of_a_step_and_memory(tmp_path: Path) -> None:
    lines = _flat(0.7, seconds=0.010)
    for row in lines[1:]:
        row |= {"perf/data_seconds": 0.001, "perf/evaluation_seconds": 0.5}
    lines[0]["model/num_params"] = 2_000_000
    zero = synth.rows([0.5], test=0.5)
    zero[0] |= {"perf/peak_bytes": 50 << 20, "model/num_params": 2_000_000}
    root = _write(
        tmp_path, [(synth.config(), lines), (synth.config(**synth.zero_shot(False)), zero)]
    )
    groups = _groups(root)
    table = cost.phase_table(groups[0])
    assert table is not None
    assert table.headers == ["method", "ms per step", "data", "forward", "rest", "one evaluation"]
    assert table.rows == [["mezo", "10.0", "1.00", "7.50", "1.50", "500"]]
    for row in lines[1:]:  # a millisecond of perturbing within the forwards counts once
        row |= {"perf/perturb_seconds": 0.0012, "perf/woven_seconds": 0.001}
        row["perf/update_seconds"] = 0.0003
    split = _write(tmp_path / "split", [(synth.config(), lines)])
    table = cost.phase_table(_groups(split)[0])
    assert table is not None
    assert table.headers[2:-1] == ["data", "perturb", "forward", "update", "rest"]
    assert table.rows == [["mezo", "10.0", "1.00", "1.20", "6.50", "0.30", "1.00", "500"]]
    for row in lines[1:]:  # offload: copies are made within the forwards too
        row |= {"perf/transfer_seconds": 0.0025, "perf/woven_seconds": 0.0035}
    streamed = tmp_path / "streamed"
    synth.write_wandb(streamed / "x", "x", synth.config(), lines)
    for source in ("local", "wandb"):
        if source == "local":
            _write(streamed, [(synth.config(), lines)])
        table = cost.phase_table(group_runs(read(streamed, source))[0][0])
        assert table is not None
        assert table.headers[2:-1] == ["data", "transfer", "perturb", "forward", "update", "rest"]
        assert table.rows == [["mezo", "10.0", "1.00", "2.50", "1.20", "4.00", "0.30", "1.00",
                               "500"]]  # fmt: skip
    memory = cost.memory_table(groups)
    assert memory is not None
    assert memory.rows == [
        ["tiny", "2.0", "zero_shot", "50", "1.00"],
        ["tiny", "2.0", "mezo", "100", "2.00"],
    ]


# --- published numbers ---------------------------------------------------------------------------


def test_published_numbers_are_read() -> None:
    rows = reproduction.published()
    assert len(rows) > 700
    (row,) = [
        r for r in rows
        if (r.table, r.model, r.task, r.method) == ("Table 1", "opt-13b", "SST2", "zero-shot")
        and r.paper.startswith("MeZO (")
    ]  # fmt: skip
    assert (row.value, row.std, row.metric, row.tuning) == (58.8, None, "accuracy", "none")
    assert row.notes.startswith("read in a full-text copy")


def test_yaml_keeps_every_cell() -> None:
    head = "paper,table,model,task,method,tuning,setting,metric,value,std,steps,notes\n"
    text = head + 'P (arXiv 1),"T: 1",m,"t, u",x,full,k=16,F1,1.5,,"<300","no: yes"\n'
    (content,) = yaml_files(text).values()
    assert list(yaml_files(text)) == ["p.yaml"]
    import yaml

    assert yaml.safe_load(content) == {
        "paper": "P (arXiv 1)",
        "tables": [{"table": "T: 1", "rows": [{
            "model": "m", "task": "t, u", "method": "x", "tuning": "full", "setting": "k=16",
            "metric": "F1", "value": 1.5, "steps": "<300", "notes": "no: yes"}]}],
    }  # fmt: skip
    with pytest.raises(ValueError, match="line 2: no paper"):
        yaml_files(head + ",T,m,t,x,full,,F1,1,,,\n")


def test_reproduction_by_hand(tmp_path: Path) -> None:
    """MeZO, Table 1: OPT-13B on SST2, MeZO 91.4, zero-shot 58.8; 1000/500/1000 examples."""
    about = {"model.name": "opt_13b", "task.name": "sst2", "task.num_dev": 500}
    plans = [
        (synth.config(seed, **about, **{"train.steps": 40}), _flat(level))
        for seed, level in enumerate((0.90, 0.92, 0.91))
    ]
    for cfg, _ in plans:
        cfg["task"] |= {"num_train": 1000, "num_test": 872}
    (group,) = _groups(_write(tmp_path, plans))
    rows = [
        row for row in reproduction.csv_rows([group])
        if row["table"] == "Table 1" and row["published_method"] == "MeZO (full)"
        and row["paper"].startswith("MeZO (")
    ]  # fmt: skip
    (row,) = rows
    assert row["published"] == 91.4
    assert row["difference"] == pytest.approx(91.0 - 91.4)
    assert row["inside"] is True
    assert "task.num_test 872, published 1000" in row["not_comparable"]
    assert "40 steps, published 20000" in row["not_comparable"]
    assert "num_train" not in row["not_comparable"]
    table = reproduction.reproduction_table(group)
    assert table is not None
    assert ["91.4", "91.0 [90.0, 92.0]", "-0.4", "inside"] in [row[2:6] for row in table.rows]


def test_a_model_of_no_paper_has_no_reproduction(two_tasks: Path) -> None:
    assert reproduction.reproduction_table(_groups(two_tasks)[0]) is None


# --- forms ---------------------------------------------------------------------------------------

NASTY = "a_b & 50% $x$ #1 {y} ~ ^ \\z <b> |c| “q” ± × ≥ ∞ é 中 [k]"


def test_latex_escapes_everything() -> None:
    assert latex.escape("a_b & 50% $x$") == r"a\_b \& 50\% \$x\$"
    assert latex.escape("é ± 中") == r"e $\pm$ [U+4E2D]"
    text = latex.table(Table("T", ["a", "b"], [["[x]", "\\end{tabular}"]]), "t")
    assert r"{[x]} & {\textbackslash{}end\{tabular\}} \\" in text


@pytest.mark.skipif(not (shutil.which("pdflatex") or synth.REQUIRE_ALL), reason="no TeX here")
def test_latex_compiles(two_tasks: Path, tmp_path: Path) -> None:
    hostile = synth.config(0, **{"task.name": NASTY, "model.name": NASTY})
    synth.write_local(two_tasks, "97", hostile, _flat(0.7))
    out = tmp_path / "out"
    build(two_tasks, out)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=out, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (out / "report.pdf").stat().st_size > 10_000
    assert "Overfull" not in done.stdout


def test_figures_in_three_forms(two_tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    paths = build(two_tasks, out, target=parse_target("absolute:0.62")).paths
    magic = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for name in ("convergence", "speedup", "profile"):
        for suffix, head in magic.items():
            assert paths[name + suffix].read_bytes().startswith(head)
    rows = list(csv.DictReader((out / "speedup.csv").open()))
    assert {row["rule"] for row in rows} == {"absolute"}


def test_more_methods_than_colours_are_told_apart(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(len(plots.PALETTE) + 1)]
    plans = [(synth.config(**{"optimizer.name": name}), _flat(0.7)) for name in ("mezo", *names)]
    (group,) = _groups(_write(tmp_path, plans))
    colour = plots.colours([group])
    lines = [line for line in plots.convergence_figures(group, colour)[0][1].data
             if line.mode == "lines+markers"]  # fmt: skip
    assert len({(line.line.color, line.marker.symbol) for line in lines}) == len(plans)
    drawn = plots.speedup_figure(group, colour)
    assert list(drawn.layout.yaxis.ticktext) == names


def test_speedups_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    """On a logarithmic axis; censored ends as arrows, and what has no number as words."""

    def until(reached: list[int | None]) -> list[list[dict[str, Any]]]:
        curves = [[0.8 if at is not None and i >= at else 0.5 for i in range(9)] for at in reached]
        return [[row | {"gpu_seconds": 0.0} for row in synth.rows(curve, test=0.8)]
                for curve in curves]  # fmt: skip

    small, large = synth.masked("small_weights", 0.75), synth.masked("large_weights", 0.75)
    methods = [({}, [4, 8, 4]), (large, [None] * 3), (RANDOM, [2, 2, 1]), (small, [4, 1, None]),
               ({"optimizer.name": "<i>"}, [2, 2])]  # fmt: skip
    plans = [(synth.config(seed, **changes) | {"train": {**synth.BASE["train"], "steps": 80}}, rows)
             for changes, reached in methods
             for seed, rows in enumerate(until(reached))]  # fmt: skip
    (group,) = _groups(_write(tmp_path, plans), target=parse_target("absolute:0.8"))
    drawn = plots.speedup_figure(group, plots.colours([group]))
    assert drawn.layout.xaxis.type == "log"
    assert 1.0 in drawn.layout.xaxis.tickvals
    left, right = (10**end for end in drawn.layout.xaxis.range)
    assert list(drawn.layout.yaxis.ticktext) == [
        "&lt;i&gt;", "mezo<br>+ large_weights 0.75", "mezo<br>+ random 0.5",
        "mezo<br>+ small_weights 0.75",
    ]  # fmt: skip
    # No GPU hours: nobody spent any.
    legend, lines = drawn.data[:3], drawn.data[3:]
    assert [entry.name for entry in legend] == ["steps", "forwards", "seconds"]
    assert all(line.showlegend is False for line in lines)
    two, missed, sure, rare = (line for line in lines if line.legendgroup == "step")
    assert (list(two.x), list(two.text)) == ([2.0], ["  2.00×"])  # two seeds: no interval
    assert (missed.mode, list(missed.text)) == ("text", [" not reached"])
    assert (list(sure.x), set(sure.y)) == ([2.0, 2.0, 8.0], {8})
    assert list(sure.marker.symbol) == ["line-ns-open", "circle", "line-ns-open"]
    low, middle, high = rare.x
    assert left < low < 0.5 <= middle == 1.0 < high < right
    assert list(rare.marker.symbol) == ["triangle-left", "circle", "line-ns-open"]
    assert rare.hovertemplate.startswith("mezo + small_weights 0.75, steps: 1.00× [missed, 8.00]")
    censored = plots._speedup_line(
        stats.Speedup(3, 3, 5.0, 2.0, True, 1.0, 4.0, True), "x", "#0", 0, 9
    )
    assert censored["marker"]["symbol"][-1] == "triangle-right"
    assert censored["text"][-1] == "  ≥ 2.00×"


def test_publishing_sends_every_table(two_tasks: Path, tmp_path: Path) -> None:
    made: dict[str, Any] = {}

    class Report:
        url = "https://example.invalid/r"

        def __init__(self, **given: Any) -> None:
            made.update(given)

        def save(self) -> None:
            made["saved"] = True

    def refuse(**_: Any) -> None:
        raise ValueError("no such\nproject")

    block = SimpleNamespace
    report = build(two_tasks, tmp_path / "out").contents
    good = SimpleNamespace(Report=Report, MarkdownBlock=block)
    assert publish(report, "me/zolab", "T", good) == Report.url
    assert (made["entity"], made["project"], made["saved"]) == ("me", "zolab", True)
    texts = [part.text for part in made["blocks"]]
    assert any("mezo + random 0.5" in text for text in texts)
    assert len(texts) >= len(report.mains) + len(report.overall)
    bad = SimpleNamespace(Report=refuse, MarkdownBlock=block)
    with pytest.raises(UserError, match=r"^--publish=zolab: no such project$"):
        publish(report, "zolab", "T", bad)
