"""What every task gives to training and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zolab.config.rows import RowForm
from zolab.data import Row, read_splits


@dataclass(frozen=True)
class Example:
    """One question with its candidate answers.

    Attributes:
        prompt: text before the answer.
        candidates: answers as they follow the prompt, leading space included; of a generation
            task the one text trained on.
        label: index of the right one, the one trained on.
        suffix: text after the answer; only where a mask stands for it.
        right: indices of all candidates that count as correct, where several do; empty means
            (label,).
        answers: gold texts of a generation task, any of which will do; empty for all others.
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int
    suffix: str = ""
    right: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


class Task:
    """Base of the tasks: reads the splits and turns each row into an `Example`.

    Args:
        name: name in tables.
        path: embedded data set or a folder of JSON lines.
        num_train, num_dev, num_test: rows used at most; a larger split is sampled.
        max_length: longest prompt with answer in tokens; None: what the model can take.

    Attributes:
        metric: what `dev/` and `test/` report besides the loss: "accuracy" or "f1".
        objective: what `train.objective=auto` minimises: "options" (cross-entropy over all
            candidates' mean log-probabilities) or "lm" (the right candidate's tokens alone).
        form: what the task uses of a row; set by subclasses.
    """

    metric = "accuracy"
    objective = "options"
    form: RowForm

    def __init__(
        self,
        name: str,
        path: str,
        num_train: int = 1000,
        num_dev: int = 500,
        num_test: int = 1000,
        max_length: int | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.sizes = {"train": num_train, "dev": num_dev, "test": num_test}
        self.max_length = max_length

    def load(self, folder: Path) -> dict[str, list[Example]]:
        """The examples of each split; UserError names file and line of a bad row."""
        splits = read_splits(folder, self.sizes, self.form)
        return {name: [self.example(row) for row in rows] for name, rows in splits.items()}

    def example(self, row: Row) -> Example:
        """One row as an example; raises UserError through `row.fail`."""
        raise NotImplementedError


def fingerprint(splits: dict[str, Sequence[Example]]) -> str:
    """16 hex of sha256 over the exact examples in order, for the run record."""
    body: Any = {name: [_parts(e) for e in rows] for name, rows in sorted(splits.items())}
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def _parts(example: Example) -> list[Any]:
    """What makes an example; what only some tasks have is left out where it is empty."""
    more = {"suffix": example.suffix, "right": example.right, "answers": example.answers}
    given = {name: value for name, value in more.items() if value}
    return [example.prompt, list(example.candidates), example.label, *([given] if given else [])]
