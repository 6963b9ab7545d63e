"""Accuracy of tasks with several right answers, or several rows to a question, worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.tasks import own_rows
from zolab import assets, compose
from zolab.evaluate import evaluate
from zolab.objectives import Encoder
from zolab.objectives.batch import collate
from zolab.prepare import task_of

RECORD = ["Nora Field", "Harlan", "Otto Brandt", "Brandt"]


class Chooses:
    """Stands for a model that gives each row the candidate it is told to."""

    def __init__(self, encoded, chosen) -> None:
        self.chosen = {id(e): c for e, c in zip(encoded, chosen, strict=True)}

    def batch(self, part, share):
        self.part = part
        return collate(part, 1, torch.device("cpu"))

    def scores(self, batch):
        scores = torch.full((1, *batch.counts.shape), -torch.inf)
        for row, e in enumerate(self.part):
            scores[0, row, : len(e.candidates)] = -2.0
            scores[0, row, self.chosen[id(e)]] = -1.0
        return scores


def accuracy(task: str, folder: Path, num_rows: int, choose) -> float:
    """Accuracy on the first rows where `choose` says which candidate of an example wins."""
    given = [f"task={task}", f"task.path={own_rows.write(task, folder)}"]
    cell = compose.check(compose.compose(compose.prepare_overrides(given)))
    examples = task_of(cell).load()["test"][:num_rows]
    tokenizer = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    encoded = Encoder(tokenizer, 256)(examples)
    chosen = [choose(number, example) for number, example in enumerate(examples)]
    return evaluate(Chooses(encoded, chosen), encoded, 8).metrics["accuracy"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # gold: Harlan; Otto Brandt or Brandt; Nora Field; Harlan
        (["Harlan", "Otto Brandt", "Nora Field", "Harlan"], 1.0),
        (["Harlan", "Brandt", "Nora Field", "Harlan"], 1.0),  # either gold name is right
        (["Brandt", "Brandt", "Nora Field", "Harlan"], 0.75),
        (["Brandt", "Harlan", "Brandt", "Otto Brandt"], 0.0),
    ],
)
def test_record_takes_any_gold_entity(names: list[str], expected: float, tmp_path: Path) -> None:
    def choose(number, example) -> int:
        assert len(example.candidates) == len(RECORD)
        return RECORD.index(names[number])

    assert accuracy("record", tmp_path / "data", 4, choose) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # labels: yes yes no (first question), no yes (second)
        ("yyn ny", 1.0),
        ("yyy ny", 0.8),  # one answer of five; a mean over questions would be 5/6
        ("yyy yy", 0.6),
        ("nny yn", 0.0),
    ],
)
def test_multirc_counts_each_answer(said: str, expected: float, tmp_path: Path) -> None:
    answers = said.replace(" ", "")
    found = accuracy("multirc", tmp_path / "data", 5, lambda i, _: "ny".index(answers[i]))
    assert found == pytest.approx(expected)
