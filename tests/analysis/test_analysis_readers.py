"""Run folders and `.wandb` files, sound and damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import analysis_synth as synth
import polars as pl
import pytest
from wandb_reference import read_both_ways

from analysis.runs import flatten, read, read_local, read_wandb
from zolab.errors import UserError
from zolab.tracking.wandb_blocks import BLOCK_BYTES
from zolab.tracking.wandb_file import WandbLog


def test_both_sources_give_the_same_tables(both: Path) -> None:
    local, wandb = read_local(both), read_wandb(both)
    assert local.metrics.equals(wandb.metrics, null_equal=True)
    assert local.runs.drop("reported").equals(wandb.runs.drop("reported"), null_equal=True)
    assert local.notes == wandb.notes == ()
    states = dict(local.runs.select("run_id", "state").iter_rows())
    assert states == {"aa": "done", "bb": "done", "cc": "done", "dd": "done", "ee": "unfinished"}


def test_types_and_flat_config(both: Path) -> None:
    runs = read_local(both).runs
    row = runs.filter(run_id="cc").to_dicts()[0]
    assert (row["lr"], row["seed"], row["train_steps"], row["last_step"]) == (1e-6, 0, 40, 40)
    assert (row["sparsity"], row["sparsity_share"]) == ("small_weights", 0.75)
    assert row["config.optimizer.estimator.num_probes"] == "1"
    assert row["config.task.label_words"] == '[" a", " b"]'
    assert runs.filter(run_id="dd")["config.optimizer.lr"].to_list() == [None]
    assert flatten({"a": {"b": 1.0, "c": {}}, "d": None}) == {"a.b": "1", "a.c": "{}", "d": "null"}


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    folder = synth.write_local(tmp_path, "aa", synth.config(), synth.rows([0.5] * 5, test=0.5))
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("0.0002", "2e-4"))
    assert read_local(tmp_path).runs["lr"].to_list() == [2e-4]


@pytest.mark.parametrize("source", ["local", "wandb"])
def test_the_later_attempt_wins_its_rows(both: Path, source: str) -> None:
    metrics = read(both, source).metrics.filter(run_id="bb")

    def column(key: str) -> list[float]:
        return metrics.filter(pl.col("key") == key)["value"].to_list()

    assert column("attempt") == [1, 1, 2, 2, 2]
    assert column("dev/accuracy") == [0.3, 0.5, 0.61, 0.7, 0.71]
    assert column("train_seconds")[:3] == [0.0, 5.0, 0.4]


def test_torn_last_line_and_broken_line(tmp_path: Path) -> None:
    folder = synth.write_local(tmp_path, "aa", synth.config(), synth.rows([0.5] * 5, test=0.6))
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"step": 10, \xff\n', *lines[2:], b'{"step": 50, "dev']))
    runs = read_local(tmp_path)
    assert runs.metrics["step"].unique().sort().to_list() == [0, 20, 30, 40]
    assert any("torn line" in note for note in runs.notes)
    assert any("1 unreadable line" in note for note in runs.notes)


def test_unreadable_runs_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = synth.rows([0.5] * 5, test=0.6)
    synth.write_local(tmp_path, "good", synth.config(), rows)
    (synth.write_local(tmp_path, "yaml", synth.config(), rows) / "config.yaml").write_text("a: [")
    (synth.write_local(tmp_path, "gone", synth.config(), rows) / "config.yaml").unlink()
    cfg = synth.config()
    del cfg["train"]
    synth.write_local(tmp_path, "lacks", cfg, rows)
    synth.write_local(tmp_path, "new", synth.config(1), rows, result={"schema": 2})
    (tmp_path / "not_a_run").mkdir()
    runs = read_local(tmp_path)
    assert runs.runs["run_id"].to_list() == ["good"]
    text = "\n".join(runs.notes)
    assert all(f"run {name}:" in text for name in ("yaml", "gone", "lacks"))
    assert "1 run(s) with log schema 2" in text
    assert "new" in text
    assert "not_a_run" not in text


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, word in (
        (tmp_path, "no runs"),
        (tmp_path / "no", "no such"),
        (tmp_path / "file", "file"),
    ):
        with pytest.raises(UserError, match=word):
            read_local(path)
    with pytest.raises(UserError, match=r"no \.wandb files"):
        read_wandb(tmp_path)
    with pytest.raises(UserError, match="local, wandb, online"):
        read(tmp_path, "cloud")


def test_a_wandb_file_of_another_program_is_named(tmp_path: Path, both: Path) -> None:
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True, silent=True)
    with wandb.init(mode="offline", dir=str(tmp_path), id="alien", settings=settings) as run:
        run.log({"x": 1})
    with pytest.raises(UserError, match="run alien: unreadable"):
        read_wandb(tmp_path)
    (tmp_path / "good").symlink_to(both / "aa")
    runs = read_wandb(tmp_path)
    assert runs.runs["run_id"].to_list() == ["aa"]
    assert any("alien" in note for note in runs.notes)


def _log(tmp_path: Path, data: bytes) -> WandbLog:
    path = tmp_path / "run-long.wandb"
    path.write_bytes(data)
    return read_both_ways(path)


def _texts(log: WandbLog) -> list[str]:
    """Rows in a form in which NaN equals NaN."""
    return [json.dumps(row, sort_keys=True) for row in log.rows]


def test_a_long_log_is_read_whole(tmp_path: Path, long_log: bytes) -> None:
    assert len(long_log) > 3 * BLOCK_BYTES
    log = _log(tmp_path, long_log)
    assert [step for step, _ in log.rows] == list(range(0, 2200, 10))
    assert log.notes == []
    assert log.exit_code == 0


@pytest.mark.parametrize("seed", range(100))
def test_truncation_keeps_every_earlier_row(tmp_path: Path, long_log: bytes, seed: int) -> None:
    whole = _texts(_log(tmp_path, long_log))
    cut = random.Random(seed).randrange(len(long_log))
    log = _log(tmp_path, long_log[:cut])
    rows = _texts(log)
    assert rows == whole[: len(rows)]
    # Records lie within 2 KiB here, so a cut costs no more than a few rows.
    assert len(rows) >= (cut - 4096) / len(long_log) * len(whole) - 5


@pytest.mark.parametrize("seed", range(100))
def test_bit_flips_lose_rows_but_change_none(tmp_path: Path, long_log: bytes, seed: int) -> None:
    whole = _texts(_log(tmp_path, long_log))
    rng = random.Random(seed)
    damaged = bytearray(long_log)
    places = sorted(rng.randrange(len(damaged)) for _ in range(rng.choice((1, 1, 5))))
    for place in places:
        damaged[place] ^= 1 << rng.randrange(8)
    log = _log(tmp_path, bytes(damaged))
    rows = _texts(log)
    before = _texts(_log(tmp_path, long_log[: places[0]]))
    assert rows[: len(before)] == before
    assert set(rows) <= set(whole)
    assert log.notes
    # Reading goes on at the next block: one flip costs at most about one block of rows.
    if len(places) == 1 and places[0] > 7:
        assert len(rows) >= len(whole) * (1 - 2.2 * BLOCK_BYTES / len(long_log))


def test_garbage_and_empty_files(tmp_path: Path) -> None:
    for data in (b"", b":W&B", b"\0" * 100_000, random.Random(0).randbytes(100_000)):
        log = _log(tmp_path, data)
        assert log.rows == []
        assert log.run_id == "long"
        assert log.notes


def test_damage_is_told_by_the_reader_of_folders(tmp_path: Path, long_log: bytes) -> None:
    path = tmp_path / "offline-run-1-long" / "run-long.wandb"
    path.parent.mkdir()
    path.write_bytes(long_log[: len(long_log) * 2 // 3])
    runs = read_wandb(tmp_path)
    assert runs.runs["state"].to_list() == ["unfinished"]
    assert any("run long" in note and "ends inside a record" in note for note in runs.notes)
