"""Every task trains and is evaluated, as a causal and, where it applies, as a masked one.

Real rows instead of hand-written ones: ZOLAB_DATA=DIR with a folder for each task.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tasks import own_rows, tiny_masked
from zolab import compose
from zolab.run import run_dir

CASES = [(task, "causal") for task in own_rows.TASKS]
CASES += [(task, "masked") for task in own_rows.TASKS if task not in own_rows.CAUSAL_ONLY]
#: Folder of a task's real rows, where it is not called as the task in capitals.
REAL = {"squad": "SQuAD_xquad_en", "wsc_54": "WSC", "uci_sent_words": "UCI_SENT"}
#: Real rows without a field that the task's own prompt has.
LACKS = {"squad": 'task.template="Context: {context}\\nQuestion: {question}\\nAnswer:"'}
STEPS = 20
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="session")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_masked.save(tmp_path_factory.mktemp("masked") / "roberta")


def data_of(task: str, folder: Path) -> list[str]:
    """Where the rows of a task are: overrides."""
    real = os.environ.get("ZOLAB_DATA")
    if real is None:
        return [f"task.path={own_rows.write(task, folder)}"]
    names = {entry.name.lower(): entry for entry in Path(real).iterdir()}
    found = names.get(REAL.get(task, task).lower())
    if found is None:
        pytest.skip(f"no rows of {task} in ZOLAB_DATA")
    return [f"task.path={found}", *([LACKS[task]] if task in LACKS else [])]


def train(folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Result and rows of a run."""
    cell = compose.check(compose.compose(compose.prepare_overrides([
        f"run_root={folder}", "tracking=local", "optimizer=mezo", "optimizer.lr=1e-4",
        f"train.steps={STEPS}", f"train.eval_every={STEPS}", "train.batch_size=4",
        "train.log_every=5", *overrides,
    ])))  # fmt: skip
    run = compose.write_cell(cell)
    result = run_dir(run)
    return result, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_task_trains_and_is_evaluated(
    task: str, kind: str, tmp_path: Path, masked_model: Path
) -> None:
    model = [f"model.path={masked_model}", "model.kind=masked"] if kind == "masked" else []
    few = [f"task.num_{split}=16" for split in SPLITS]
    short = ["task.max_new_tokens=8"] if task in own_rows.GENERATED else []
    result, rows = train(
        tmp_path / "runs", f"task={task}", *data_of(task, tmp_path / "data"), *model, *few, *short
    )
    metric = "f1" if task in own_rows.GENERATED else "accuracy"
    assert result["metric"] == metric
    assert result["steps"] == STEPS
    assert result["forwards_total"] == 2 * STEPS
    assert result["data"]["num_train"] >= 8 or task == "cb"
    last = rows[-1]
    for split in ("dev", "test"):
        assert math.isfinite(last[f"{split}/loss"])
        assert 0.0 <= last[f"{split}/{metric}"] <= 1.0
    assert rows[0]["dev/loss"] != last["dev/loss"]  # the weights moved
    coefficients = [row["zo/projected_grad"] for row in rows if "zo/projected_grad" in row]
    assert len(coefficients) == 4
    assert all(map(math.isfinite, coefficients))
    print(
        f"{task:10} {kind:7} rows {'/'.join(str(result['data'][f'num_{s}']) for s in SPLITS)}  "
        f"dev loss {rows[0]['dev/loss']:.3f} -> {last['dev/loss']:.3f}  "
        f"test {metric} {last[f'test/{metric}']:.3f}"
    )
