"""The model as it is, asked in different ways: zero-shot, calibrated, with demonstrations."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zolab.errors import UserError
from zolab.evaluate import calibration
from zolab.learner import Plain, Reader
from zolab.objectives import Batch, BatchLoss, Encoded, Encoder, Scorer
from zolab.optim import StepRecord
from zolab.tasks.base import Example

#: Between demonstrations, and before the question.
BLANK_LINE = "\n\n"


class Untrained(Plain):
    """A method that takes no step; it only decides what is read and how."""

    trains = False
    last: StepRecord | None = None
    num_steps = 0

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self.facts = {}

    def step(self, closure: BatchLoss) -> float:
        raise RuntimeError(f"{type(self).__name__} takes no steps")


class ZeroShot(Untrained):
    """The model's own answers.

    Args:
        model: not changed.
        calibrate: subtract each label word's mean log-probability over training prompts.
        num_calibration: training prompts used for that, labels unseen.
    """

    def __init__(
        self, model: nn.Module, calibrate: bool = False, num_calibration: int = 200
    ) -> None:
        super().__init__()
        self.calibrate = num_calibration if calibrate else 0

    def reader(self, scorer: Scorer, train: Sequence[Encoded], batch_size: int) -> Scorer | Reader:
        """The scorer, less what each word has for any prompt."""
        if not self.calibrate:
            return scorer
        return Calibrated(scorer, calibration(scorer, train[: self.calibrate], batch_size))


class Calibrated(Reader):
    """Scores less a bias for each candidate, float32 (candidates,)."""

    def __init__(self, scorer: Scorer, bias: Tensor) -> None:
        super().__init__(scorer)
        self.bias = bias

    def scores(self, batch: Batch, copies: int = 1) -> Tensor:
        return self.scorer.scores(batch, copies) - self.bias


class ICL(Untrained):
    """In-context learning: answered training examples stand before the question.

    They are drawn at random, anew for each question unless `demo_seed` is given, and joined by
    blank lines. As many whole ones are used as fit beside the question; how many those are, mean
    over the split, is logged as `dev/demonstrations` and `test/demonstrations`.
    Source: MeZO (arXiv 2305.17333), appendix E, with 32 of them.

    Args:
        model: not changed.
        num_demonstrations: how many at most.
        demo_seed: one set for all questions, drawn with this; None: a set for each.
        seed: run seed, decides the sets that differ by question.
    """

    def __init__(
        self,
        model: nn.Module,
        num_demonstrations: int = 32,
        demo_seed: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_demonstrations = num_demonstrations
        self.demo_seed = demo_seed
        self.seed = seed

    def prompts(
        self, splits: dict[str, list[Example]], encoder: Encoder
    ) -> dict[str, list[Example]]:
        """Dev and test with demonstrations from train before each prompt."""
        texts = [answered(example) for example in splits["train"]]
        sizes = [_count(encoder, BLANK_LINE + text) for text in texts]
        out = {"train": splits["train"]}
        for name, rows in splits.items():
            if name == "train":
                continue
            fitted = []
            out[name] = []
            for i, example in enumerate(rows):
                key = f"{self.seed} {name} {i}" if self.demo_seed is None else str(self.demo_seed)
                count = min(self.num_demonstrations, len(texts))
                chosen = random.Random(key).sample(range(len(texts)), count)
                chosen = _fitting(example, chosen, texts, sizes, encoder)
                before = "".join(texts[j] + BLANK_LINE for j in chosen)
                out[name].append(_preceded(example, before))
                fitted.append(len(chosen))
            self.facts[f"{name}/demonstrations"] = sum(fitted) / len(fitted)
        if not any(self.facts.values()):
            raise UserError(
                f"optimizer = icl: no demonstration fits beside a question in {encoder.max_length} "
                "tokens; use optimizer=zero_shot or a model that takes more"
            )
        return out


def answered(example: Example) -> str:
    """A demonstration: the example with its right answer."""
    return (example.prompt + example.candidates[example.label]).strip()


def _fitting(
    example: Example, chosen: list[int], texts: list[str], sizes: list[int], encoder: Encoder
) -> list[int]:
    """As many of the chosen demonstrations, in order, as the model takes beside the example."""
    longest = max(example.candidates, key=len)
    question = example.prompt + longest
    limit = encoder.max_length
    if example.answers:
        question, limit = example.prompt, limit - encoder.max_new_tokens
    room = limit - _count(encoder, question)
    kept: list[int] = []
    for index in chosen:
        room -= sizes[index]
        if room < 0:
            break
        kept.append(index)
    # Pieces may join to more tokens than they had apart; the whole text decides.
    while kept:
        whole = "".join(texts[j] + BLANK_LINE for j in kept) + question
        if _count(encoder, whole) <= limit:
            break
        kept.pop()
    return kept


def _count(encoder: Encoder, text: str) -> int:
    return len(encoder.tokenizer(text)["input_ids"])


def _preceded(example: Example, before: str) -> Example:
    return dataclasses.replace(example, prompt=before + example.prompt)
