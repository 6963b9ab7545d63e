"""docs/tasks.md says of each task what its YAML says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tasks import own_rows
from zolab import compose

DOC = Path(__file__).resolve().parents[1] / "docs" / "tasks.md"


def test_the_table_is_what_the_yamls_say() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOC.read_text(), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert sorted(told) == own_rows.TASKS
    for name, (causal, masked, metric, sizes, data) in told.items():
        task = compose.resolve(compose.compose([f"task={name}"]))["task"]
        assert causal != "–"
        assert (masked == "–") == (name in own_rows.CAUSAL_ONLY)
        assert metric == ("f1" if task["kind"] == "generation" else "accuracy")
        assert sizes == "/".join(str(task[f"num_{split}"]) for split in ("train", "dev", "test"))
        hub = " ".join(filter(None, (task["hub"]["name"], task["hub"]["config"])))
        assert data == (hub or ("inside the package" if task["path"] else "–"))
