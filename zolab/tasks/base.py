"""What every task gives to training and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zolab import assets
from zolab.config.forms import CAUSAL
from zolab.config.rows import RowForm
from zolab.data import Row, Sampling, read_folder, read_hub
from zolab.errors import UserError


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
        field: part of `prompt` or `suffix` that is shortened first, see `task.masked.field`.
    """

    prompt: str
    candidates: tuple[str, ...]
    label: int
    suffix: str = ""
    right: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    field: str = ""

    def only_label(self) -> Example:
        """The same with the right candidate alone, which is all that LM loss reads."""
        return replace(self, candidates=(self.candidates[self.label],), label=0, right=())


class Task:
    """Base of the tasks: reads the splits and turns each row into an `Example`.

    Args:
        name: name in tables.
        path: embedded data set or a folder of data files; None: from the hub.
        hub: `task.hub` section of a checked config; read where `path` is None.
        num_train, num_dev, num_test: rows used at most; a larger split is sampled.
        split_seed: seed of the rows drawn.
        k: rows of each label in train and again in dev instead of num_train and num_dev.
        max_length: longest prompt with answer in tokens; None: what the model can take.
        protocol: "causal" or "masked", as the model is.

    Attributes:
        metric: what `dev/` and `test/` report besides the loss: "accuracy" or "f1".
        objective: what `train.objective=auto` minimises: "options" (cross-entropy over all
            candidates' mean log-probabilities) or "lm" (the right candidate's tokens alone).
        form: what the task uses of a row; set by subclasses.
        max_new_tokens: longest answer that is generated; 0 where nothing is.
        field_length: tokens that `Example.field` keeps; None: all.
    """

    metric = "accuracy"
    objective = "options"
    max_new_tokens = 0
    field_length: int | None = None
    form: RowForm

    def __init__(
        self,
        name: str,
        path: str | None = None,
        hub: dict[str, Any] | None = None,
        num_train: int = 1000,
        num_dev: int = 500,
        num_test: int = 1000,
        split_seed: int = 0,
        k: int | None = None,
        max_length: int | None = None,
        protocol: str = CAUSAL,
    ) -> None:
        self.name = name
        self.path = path
        self.hub = hub
        sizes = {"train": num_train, "dev": num_dev, "test": num_test}
        self.sampling = Sampling(sizes, split_seed, k)
        self.max_length = max_length
        self.protocol = protocol

    def load(self, folder: Path | None = None) -> dict[str, list[Example]]:
        """The examples of train, dev and test.

        Args:
            folder: data files to read in place of those behind `path`.

        Raises:
            UserError: the data cannot be had, or a row cannot be used; names file and line.
        """
        if folder is None and self.path is not None:
            folder = assets.locate_task(self.path)
            if folder is None:
                raise UserError(f"task.path = {self.path!r}: no such folder")
        if folder is not None:
            splits = read_folder(folder, self.sampling, self.form)
        else:
            splits = read_hub(self.hub or {}, self.sampling, self.form)
        return {name: [self.example(row) for row in rows] for name, rows in splits.items()}

    def example(self, row: Row) -> Example:
        """One row, as its form allows it, as an example; raises UserError through `row.fail`."""
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
