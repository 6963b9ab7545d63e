"""The quick way to write a journal row gives the text of the careful one, or leaves it to that."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from zolab.journal import Journal, JournalRow, _plain_line
from zolab.optim import StepRecord
from zolab.tracking.local import read_rows

PLAIN = [
    StepRecord(1, 2e-4, (0.5, 0.25), (0.0512345,), 0.375, 2),
    StepRecord(70000, 1e-7, (1e-300, 3e-300), (-0.0, 5e-324), 2e-300, 2),
    StepRecord(3, 0.0, (1.5,), (), 1.5, 1),
    StepRecord(4, 1, (2.0, 4.0), (1e22, -123456789.0), 3.0, 2),
]
CAREFUL = [
    StepRecord(1, 2e-4, (0.5, math.nan), None, math.nan, 2),
    StepRecord(1, 2e-4, (0.5, math.inf), (math.inf,), math.inf, 2),
    StepRecord(1, 2e-4, (0.5, 0.25), (math.nan,), 0.375, 2),
    StepRecord(1, 2e-4, (0.5, 0.25), (0.5,), 0.25, 2),
    StepRecord(1, 2e-4, (0.5, 0.25), (0.5,), 0.375, 3),
    StepRecord(1, 2e-4, (0.5, 0.25), (0.5,), 0.375, 2, {"kept": -1}),
    StepRecord(1, 2e-4, (0.0, -0.0), (0.5,), 0.0, 2),
]


@pytest.mark.parametrize("record", PLAIN)
def test_same_text(record: StepRecord) -> None:
    assert _plain_line(record) == json.dumps(JournalRow.of(record).to_json(), separators=(",", ":"))


@pytest.mark.parametrize("record", CAREFUL)
def test_what_is_not_plain_is_left_to_json(record: StepRecord) -> None:
    assert _plain_line(record) is None


def test_all_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for record in [*PLAIN, *CAREFUL]:
        journal.append(record)
    journal.close()
    rows = [JournalRow.from_json(row) for row in read_rows(tmp_path / "journal.jsonl")]
    assert [repr(row) for row in rows] == [repr(JournalRow.of(r)) for r in [*PLAIN, *CAREFUL]]
