"""Copies of logs, the online API, and the fast paths of the readers against the plain ones."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import analysis_synth as synth
import polars as pl
import pytest

from analysis.publish import publish
from analysis.reading import folders, offline
from analysis.reading.cache import FOLDER
from analysis.reading.online import read_online
from analysis.report import build
from analysis.runs import Runs, read_local, read_wandb
from zolab.errors import UserError
from zolab.tracking import wandb_file

LINES = synth.rows([0.5, 0.6, float("nan"), 0.7, 0.7], test=0.7)


def _same(one: Runs, other: Runs) -> bool:
    return one.metrics.equals(other.metrics, null_equal=True) and one.runs.equals(
        other.runs, null_equal=True
    )


@pytest.mark.parametrize("reader", [read_local, read_wandb])
def test_a_second_reading_opens_copies_and_gives_the_same(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Any
) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    for name in ("aa", "bb", "cc"):
        (root / name).symlink_to(both / name)
    fresh = reader(root, cache=False)
    assert not (root / FOLDER).exists()
    assert _same(reader(root), fresh)

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(folders, "read_folder", fail)
    monkeypatch.setattr(offline, "read_log", fail)
    again = reader(root)
    assert _same(again, fresh)
    assert again.notes == fresh.notes


def test_a_changed_log_is_read_again(tmp_path: Path) -> None:
    folder = synth.write_local(tmp_path, "aa", synth.config(), LINES[:3])
    assert read_local(tmp_path).runs["last_step"].to_list() == [20]
    path = folder / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(LINES[3]) + "\n")
    assert read_local(tmp_path).runs["last_step"].to_list() == [30]
    # Same size and time, other bytes: the ends are looked at too.
    facts = path.stat()
    path.write_text(path.read_text().replace('"step": 30', '"step": 31'))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert read_local(tmp_path).runs["last_step"].to_list() == [31]


def test_damaged_copies_are_made_anew(tmp_path: Path) -> None:
    synth.write_local(tmp_path, "aa", synth.config(), LINES)
    fresh = read_local(tmp_path)
    (copy,) = (tmp_path / FOLDER).iterdir()
    for content in (b"", b"ARROW1", copy.read_bytes()[:-40]):
        copy.write_bytes(content)
        assert _same(read_local(tmp_path), fresh)


def test_a_folder_without_permission_to_write_is_read(tmp_path: Path) -> None:
    synth.write_local(tmp_path, "aa", synth.config(), LINES)
    (tmp_path / FOLDER).write_text("a file where the folder of copies would be")
    assert read_local(tmp_path).runs.height == 1


def test_the_fast_parser_equals_the_plain_one() -> None:
    """Random numbers of every size, missing keys, NaN and infinities, values of other types."""
    rng = random.Random(0)
    rows = []
    for step in range(300):
        row: dict[str, Any] = {"step": step, "a": rng.gauss(0, 1) * 10.0 ** rng.randint(-300, 300)}
        row |= {"n": rng.randrange(2**53), "b/c": rng.choice([float("nan"), 1.5, float("inf")])}
        if rng.random() < 0.5:
            row["rare"] = rng.choice([float("-inf"), -0.0, 7, None])
        rows.append(row)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    log = folders.RunLog("x", {}, pl.DataFrame())
    fast, plain = folders._parse_all(data), folders._parse_lines(data, log)
    assert fast is not None
    fast, plain = folders.in_order(fast), folders.in_order(plain)
    assert fast.columns == ["step", "a", "b/c", "n", "rare"]
    assert fast.equals(plain, null_equal=True)
    assert [repr(v) for v in fast["a"].to_list()] == [repr(row["a"]) for row in rows]
    huge = b'{"step": 1, "a": -1%s}\n' % (b"0" * 400)
    assert folders._metrics(huge, log)["a"].to_list() == [float("-inf")]
    assert folders._metrics(huge * 100, log)["a"].to_list() == [float("-inf")] * 100
    assert folders._parse_all(b'{"step": 1, "ok": true}\n') is None  # told apart line by line
    assert folders._parse_all(b'{"step": 1.5}\n{"a": 2}\n') is None


def test_unusual_wandb_records_go_through_protobuf(tmp_path: Path) -> None:
    long_key, wide = "k" * 200, {"x/y": 1.25, "ü": 2.0, "text": "no number", "_own": 1.0}
    rows = [
        {"step": 0, "a": 0.1 + 0.2, "nan": float("nan"), **wide},
        {"step": 7, "a": 3, "inf": float("-inf"), long_key: 4.5},
        {"step": 300, "a": -1.5e-300},
    ]
    path = synth.write_wandb(tmp_path, "odd", synth.config(), rows)
    log = wandb_file.read_log(path)
    assert [step for step, _ in log.rows] == [0, 7, 300]
    found = {step: row for step, row in log.rows}
    assert found[0] == pytest.approx(
        {"a": 0.1 + 0.2, "nan": float("nan"), "x/y": 1.25, "ü": 2.0}, rel=0, nan_ok=True
    )
    assert found[7] == {"a": 3.0, "inf": float("-inf"), long_key: 4.5}
    assert found[300] == {"a": -1.5e-300}


# --- the online API -----------------------------------------------------------------------------


class _FakeRun:
    """A run as `wandb.Api` gives it; its sampled history must never be asked for."""

    def __init__(self, run_id: str, cfg: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.id, self.state = run_id, "finished"
        self.config = {"zolab": cfg, "run_id": run_id, "schema": 1}
        self._lines = lines

    def history(self, **_: Any) -> None:
        raise AssertionError("history() is sampled")

    def scan_history(self, page_size: int) -> Iterator[dict[str, Any]]:
        assert page_size > 500
        for line in self._lines:
            row = {key: value for key, value in line.items() if key != "step"}
            row = {k: "NaN" if isinstance(v, float) and v != v else v for k, v in row.items()}
            yield {**row, "_step": line["step"], "_timestamp": 1.0, "_runtime": 2.0}


def _api(runs: list[Any]) -> Any:
    def listed(project: str, order: str, per_page: int) -> list[Any]:
        assert project == "me/zolab"
        return runs

    return SimpleNamespace(runs=listed)


def test_online_runs_equal_local_ones(tmp_path: Path) -> None:
    many = synth.rows([0.5 + i / 10000 for i in range(3000)], every=1, test=0.7)
    plans = {"aa": (synth.config(0), LINES), "bb": (synth.config(1), many)}
    for run_id, (cfg, lines) in plans.items():
        synth.write_local(tmp_path, run_id, cfg, lines)
    fakes: list[Any] = [_FakeRun(run_id, *plan) for run_id, plan in plans.items()]
    broken = _FakeRun("cc", synth.config(2), LINES)
    broken.scan_history = lambda page_size: 1 / 0  # type: ignore[method-assign]
    alien = SimpleNamespace(id="dd", config={}, state="finished")
    notes: list[str] = []
    logs = read_online("me/zolab", notes, api=_api([*fakes, broken, alien]))
    local = read_local(tmp_path)
    assert [log.run_id for log in logs] == ["aa", "bb"]
    assert all(log.table.equals(local.logs[log.run_id], null_equal=True) for log in logs)
    assert logs[1].table.height == 3000
    assert [note.split(":")[0] for note in notes] == ["run cc", "run dd"]


def test_an_unknown_project_is_one_line() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("could not find\nproject")

    with pytest.raises(UserError, match=r"^wandb project 'me/x': could not find project$"):
        read_online("me/x", [], api=SimpleNamespace(runs=refuse))


def test_the_wandb_report_holds_every_table(both: Path, tmp_path: Path) -> None:
    """A fake of the package's classes as it has them: blocks are made, the report saved once."""
    saved: list[Any] = []

    class Report(SimpleNamespace):
        def save(self) -> None:
            saved.append(self)
            self.url = "https://wandb.example/r"

    package = SimpleNamespace(Report=Report, MarkdownBlock=SimpleNamespace)
    made = build(both, tmp_path).contents
    assert publish(made, "me/zolab", "title", package) == "https://wandb.example/r"
    (sent,) = saved
    assert (sent.entity, sent.project, sent.title) == ("me", "zolab", "title")
    num_tables = len(made.mains) + sum(map(len, made.details)) + len(made.overall)
    assert len(sent.blocks) == num_tables + bool(made.notes)
    assert "| mezo |" in sent.blocks[0].text

    def refuse(**_: Any) -> None:
        raise ValueError("not\nlogged in")

    with pytest.raises(UserError, match=r"^--publish=zolab: not logged in$"):
        publish(made, "zolab", "title", SimpleNamespace(Report=refuse, MarkdownBlock=dict))
