"""Which runs are one method, in both sources, with killed runs and moved folders among them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import analysis_synth as synth
import pytest

from analysis import speedup
from analysis.methods import Group, group_runs
from analysis.report import build
from analysis.runs import read_local, read_wandb
from zolab.cli import main

CSVS = ("convergence.csv", "speedup.csv", "time_memory.csv")
LINES = synth.rows([0.5, 0.6, 0.7, 0.7, 0.7], test=0.7)
PLACEMENT = "optimizer.placement"
AUTO, PAIRED, IN_PLACE = (
    {"_target_": target} for target in ("auto", "zolab.optim.Paired", "zolab.optim.InPlace")
)


def _group(root: Path, plans: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Group:
    for number, (cfg, lines) in enumerate(plans):
        synth.write_local(root, f"{number:02d}", cfg, lines)
    (group,) = group_runs(read_local(root))[0]
    return group


def _labels(group: Group) -> dict[str, list[str]]:
    return {method.label: [curve.run_id for curve in method.done] for method in group.methods}


def test_tuning_mode_is_part_of_a_methods_name(tmp_path: Path) -> None:
    """Runs of before there were modes and full ones are one method; options of a mode are told."""
    full, lora = {"kind": "full"}, {"kind": "lora", "r": 8}
    plans = [
        (synth.config(0), LINES),
        (synth.config(1, **{"model.tuning": full}), LINES),
        (synth.config(0, **{"model.tuning": lora}), LINES),
        (synth.config(1, **{"model.tuning": {**lora, "r": 4}}), LINES),
    ]
    assert _labels(_group(tmp_path, plans)) == {
        "mezo": ["00", "01"],
        "mezo (lora), r 8": ["02"],
        "mezo (lora), r 4": ["03"],
    }


@pytest.fixture
def copied(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "runs", symlinks=True))


def test_dot_folders_are_no_runs(both: Path, copied: Path) -> None:
    (copied / ".replaced").mkdir()
    (copied / "aa").rename(copied / ".replaced" / "aa-1")
    synth.write_local(copied, ".hidden", synth.config(), LINES)
    for read in (read_local, read_wandb):
        assert read(copied).runs["run_id"].to_list() == ["bb", "cc", "dd", "ee"]
        assert "aa-1" not in "".join(read(copied).notes)
    # Asked for by name, they are read.
    assert read_local(copied / ".replaced").runs["run_id"].to_list() == ["aa-1"]


def test_a_killed_run_changes_no_csv_and_no_label(both: Path, copied: Path, tmp_path: Path) -> None:
    """Killed runs lie in the run folder, and wandb has written a header, or nothing, of them."""
    before = build(both, tmp_path / "before")
    other = {"train.eval_every": 2, "train.steps": 4}
    killed = {
        "a0": (synth.config(5, **other), synth.rows([0.3, 0.9], every=2)),
        "a1": (synth.config(6), synth.rows([0.3, 0.9])),
        "a2": (synth.config(7, **{"optimizer.lr": 1.0}), synth.rows([0.3, 0.99])),
        "a3": (synth.config(8), []),
        # Sorted before the finished run of its seed, which it must not hide.
        "a4": (synth.config(0, **synth.zero_shot(False)), synth.rows([0.3])),
    }
    for run_id, (cfg, lines) in killed.items():
        folder = synth.write_local(copied, run_id, cfg, lines, status={"state": "running"})
        if run_id in ("a0", "a3"):
            path = (
                folder / "wandb" / f"offline-run-20260101_000000-{run_id}" / f"run-{run_id}.wandb"
            )
            path.parent.mkdir(parents=True)
            path.write_bytes(b":W&B\xe1\xbe\x00")
    for source in ("local", "wandb"):
        after = build(copied, tmp_path / source, source=source)
        for name in CSVS:
            assert after.paths[name].read_bytes() == before.paths[name].read_bytes(), (source, name)
    local, wandb = build(copied, tmp_path / "local"), build(copied, tmp_path / "wandb2",
                                                            source="wandb")  # fmt: skip
    text = "\n".join(local.notes)
    assert "mezo, eval_every 2, steps 4: no finished run (run a0)" in text
    assert "tiny on toy, mezo: unfinished, in no number (2 runs: a1, a2)" in text
    assert "run a3 logged no row and count" in text
    assert "zero_shot: unfinished, in no number (run a4)" in text
    assert sum("killed before wandb wrote anything" in note for note in wandb.notes) == 2
    assert "Unfinished runs are in no number" in local.text


def test_what_unfinished_runs_would_change_is_told(tmp_path: Path) -> None:
    rand = synth.masked("random", 0.5)
    quick = synth.rows([0.5, 0.8, 0.8, 0.8, 0.8], test=0.8)
    group = _group(
        tmp_path,
        [
            (synth.config(0), LINES),
            (synth.config(0, **rand), quick),
            (synth.config(1, **rand), quick[:3]),
        ],
    )
    table = speedup.speedup_table(group)
    assert table is not None
    assert table.rows[1][1:4] == ["1 of 1 (+ 1 unfinished)", "10", "2.00×"]
    told = "Counted as misses, they would make the speedup mezo + random 0.5: not reached."
    assert any(told in note for note in table.notes)


def test_an_unfinished_run_without_a_key_is_not_the_finished_method(tmp_path: Path) -> None:
    plans = [(synth.config(0, **{"optimizer.extra": 3}), LINES), (synth.config(1), LINES[:2])]
    group = _group(tmp_path, plans)
    assert _labels(group) == {"mezo": ["00"]}
    assert group.methods[0].unfinished == ()
    assert (
        "tiny on toy, mezo, no extra: no finished run (run 01)"
        in group_runs(read_local(tmp_path))[1]
    )


def test_paths_and_devices_make_no_method(tmp_path: Path) -> None:
    moved = {"model.path": "/b/tiny", "model.device": "cpu", "task.path": "/b/toy"}
    here = {"model.path": "/a/tiny", "task.path": "/a/toy", "trusted_targets": ["mine"]}
    group = _group(
        tmp_path,
        [(synth.config(0, **moved), LINES), (synth.config(1, **here), LINES)],
    )
    assert _labels(group) == {"mezo": ["00", "01"]}
    notes = group_runs(read_local(tmp_path))[1]
    assert [note.split(" differs")[0] for note in notes] == [
        "tiny on toy: model.path", "tiny on toy: task.path"
    ]  # fmt: skip


def test_auto_and_one_explicit_placement_are_one_method(tmp_path: Path) -> None:
    plans = [
        (synth.config(0, **{PLACEMENT: AUTO}), LINES),
        (synth.config(1, **{PLACEMENT: AUTO}), LINES),
        (synth.config(1, **{PLACEMENT: PAIRED}), LINES),
        (synth.config(2, **{PLACEMENT: PAIRED}), LINES),
        # Unfinished: not enough to make two methods of the finished ones.
        (synth.config(3, **{PLACEMENT: IN_PLACE}), LINES[:2]),
    ]
    group = _group(tmp_path, plans)
    # Seed 1 ran twice with the same steps: it counts once.
    assert _labels(group) == {"mezo": ["00", "02", "03"]}
    notes = group_runs(read_local(tmp_path))[1]
    assert any("run 01 not counted: the same seed with an explicit placement" in n for n in notes)
    assert any("mezo, placement InPlace: no finished run (run 04)" in note for note in notes)


def test_two_explicit_placements_are_two_methods(tmp_path: Path) -> None:
    plans = [
        (synth.config(seed, **{PLACEMENT: placement}), LINES)
        for seed, placement in enumerate((AUTO, PAIRED, IN_PLACE))
    ]
    assert _labels(_group(tmp_path, plans)) == {
        "mezo, placement InPlace": ["02"],
        "mezo, placement Paired": ["01"],
        "mezo, placement auto": ["00"],
    }


def test_wrong_words_are_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out"), "--source", "x"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("zolab: argument --source: invalid choice: 'x'")
