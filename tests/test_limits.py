"""What does not fit: a disk that fills up, prompts and candidates longer than the model takes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_resume import exact_rows, journal_text, prepare
from zolab.errors import UserError
from zolab.journal import Journal, read_journal
from zolab.ledger import read_status
from zolab.run import run_dir
from zolab.tracking.local import JsonLines, read_rows

SHORT = ("train.steps=12", "train.eval_every=6")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no free byte."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


def test_a_full_disk_stops_the_run_and_room_continues_it(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(tmp_path / "whole", *SHORT)
    expected = run_dir(whole)
    folder = prepare(small_disk / "runs", *SHORT)
    append = Journal.append

    def append_to_full_disk(self: Journal, record) -> None:
        if record.step == 8:
            fill(small_disk)
        append(self, record)

    monkeypatch.setattr(Journal, "append", append_to_full_disk)
    # The journal's last page may have room for more rows: then the next bigger file fails.
    with pytest.raises(UserError, match="free some space"):
        run_dir(folder)
    monkeypatch.undo()
    so_far = journal_text(folder)
    assert 7 <= len(so_far) <= 12
    assert not (folder / "result.json").exists()
    assert so_far == journal_text(whole)[: len(so_far)]
    assert exact_rows(folder) == exact_rows(whole)[: len(exact_rows(folder))]
    (small_disk / "filler").unlink()
    result = run_dir(folder)
    assert result["weights_hash"] == expected["weights_hash"]
    assert exact_rows(folder) == exact_rows(whole)
    assert journal_text(folder) == journal_text(whole)


def test_a_torn_line_is_cut_off_before_more_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2}\n{"st')
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    lines = JsonLines(path)
    lines.write({"step": 3})
    lines.close()
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3]


def test_a_fenced_writer_and_a_gap_do_not_count(tmp_path: Path) -> None:
    def segment(attempt: int, steps: list[int], mark: float) -> None:
        folder = tmp_path / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        rows = [{"s": s, "lr": 0.1, "c": [mark], "l": [1.0, 2.0]} for s in steps]
        (folder / "journal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    segment(1, [1, 2, 3, 4, 5], 1.0)  # wrote 4 and 5 after attempt 2 had taken over at 3
    segment(2, [4, 5, 6], 2.0)
    segment(10, [7, 9], 3.0)
    rows = read_journal(tmp_path)
    assert [(r.step, r.coefficients[0]) for r in rows] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 3.0),
    ]  # fmt: skip


def test_a_journal_row_is_short(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "train.steps=4")
    run_dir(folder)
    for line in (folder / "attempts" / "1" / "journal.jsonl").read_bytes().splitlines():
        assert len(line) + 1 <= 100


@pytest.fixture
def long_task(tmp_path: Path) -> Path:
    """Rows of which some are longer than the embedded model's 256 tokens."""
    folder = tmp_path / "task"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        rows = [
            {"sentence": ("a fine and lively film , " * (80 if i % 3 == 0 else 2)), "label": i % 2}
            for i in range(12)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_long_prompts_are_cut_from_the_left(
    tmp_path: Path, long_task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(tmp_path / "runs", f"task.path={long_task}", "train.steps=3")
    assert run_dir(folder)["steps"] == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "cut from the left" in line]
    assert len(told) == 1
    assert "4 of 12 train, 4 of 12 dev, 4 of 12 test" in told[0]


def test_a_cut_prompt_keeps_its_beginning_token_and_its_end() -> None:
    from transformers import AutoTokenizer

    from zolab import assets
    from zolab.objectives import Encoder
    from zolab.tasks import Example

    tokenizer = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    example = Example("one two three " * 30 + "It was", (" terrible", " great"), 1)
    (encoded,) = Encoder(tokenizer, 16)([example])
    (row,) = encoded.rows
    full = tokenizer(example.prompt)["input_ids"]
    assert encoded.truncated
    assert len(row) == 16
    assert row[0] == tokenizer.bos_token_id == full[0]
    assert list(row[1:]) == full[-15:]
    assert [c.positions for c in encoded.candidates] == [(15,), (15,)]


def test_a_candidate_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    words = "task.label_words=[' terrible',' a very long answer that cannot fit in here']"
    folder = prepare(tmp_path, "task.max_length=8", words)
    with pytest.raises(UserError, match=r"candidate ' a very long answer.*max_length"):
        run_dir(folder)
    assert read_status(folder)["state"] == "failed"
