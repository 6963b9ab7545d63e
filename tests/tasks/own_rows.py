"""Hand-written rows for every task, under the hub's field names, as folders of data."""

from __future__ import annotations

import shutil
from pathlib import Path

from zolab import assets
from zolab.config import CONF_DIR

ROWS = Path(__file__).parent / "rows"
#: What reads the rows of another task.
_SAME = {
    "wsc_54": "wsc",
    "classification": "sst2",
    "multiple_choice": "copa",
    "generation": "squad",
}
#: YAMLs for a user's own data: they name no fields.
OWN = ("classification", "multiple_choice", "generation")
GENERATED = ("squad", "drop", "uci_sent_words")
CAUSAL_ONLY = ("copa", "record", *GENERATED)
TASKS = sorted(file.stem for file in (CONF_DIR / "task").glob("*.yaml") if file.stem not in OWN)


def write(task: str, folder: Path) -> Path:
    """A folder whose train, dev and test files hold the rows of a task; returns it."""
    if task.startswith("uci_sent"):
        return assets.task_dir("uci_sent")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        shutil.copy(ROWS / f"{_SAME.get(task, task)}.jsonl", folder / f"{split}.jsonl")
    return folder


def own_data(kind: str) -> list[str]:
    """Overrides that a YAML for a user's own data cannot do without."""
    return {
        "classification": ['task.template="{sentence}"', 'task.label_words=[" a"," b"]'],
        "multiple_choice": ['task.template="{premise}"', 'task.choices=["{choice1}","{choice2}"]'],
        "generation": ['task.template="{question}"', "task.answers_column=answers.text"],
    }.get(kind, [])
