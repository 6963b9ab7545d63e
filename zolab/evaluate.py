"""Loss and metric over a split, and calibration of label words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zolab.errors import UserError
from zolab.objectives import (
    OPTIONS,
    Batch,
    Encoded,
    Generator,
    Objective,
    Scorer,
    best_f1,
    correct,
    label_nll,
)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats, and by name the share answered correctly or the mean F1, 0 to 1."""

    loss: float
    metrics: dict[str, float]

    def row(self, split: str) -> dict[str, float]:
        """As metrics keys."""
        return {f"{split}/{name}": v for name, v in {"loss": self.loss, **self.metrics}.items()}


@torch.inference_mode()
def evaluate(
    scorer: Scorer,
    examples: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[], object] = bool,
    likelihood: Objective = OPTIONS,
    generator: Generator | None = None,
) -> Evaluation:
    """Evaluate on a split.

    Args:
        scorer: the model.
        examples: encoded examples.
        batch_size: token rows per forward; at least one example.
        on_batch: called after each forward, to show that the process is alive.
        likelihood: what the loss is, `OPTIONS` or `LM`.
        generator: for a generation task; else the argmax of the candidates' mean log-probabilities
            is the answer.
    """
    loss, weight, hits = 0.0, 0, 0.0
    for scores, batch in _scores(scorer, examples, batch_size):
        on_batch()
        weight += likelihood.weight(batch)
        if likelihood.label_only:
            loss += label_nll(scores[None], batch).sum().item()
        else:
            loss += F.cross_entropy(scores, batch.labels, reduction="sum").item()
        if generator is None:
            hits += int(correct(scores[None], batch).sum())
        else:
            (texts,) = generator.texts(scorer, batch.prompts)
            on_batch()
            answered = zip(texts, batch.prompts.answers, strict=True)
            hits += sum(best_f1(text or "", golds) for text, golds in answered)
    metric = "accuracy" if generator is None else "f1"
    return Evaluation(loss / weight, {metric: hits / len(examples)})


@torch.inference_mode()
def calibration(scorer: Scorer, examples: Sequence[Encoded], batch_size: int) -> Tensor:
    """Mean score of each label word over unlabelled prompts: float32 (candidates,).

    Source: after Zhao et al. (arXiv 2102.09690), with training prompts in place of "N/A".
    """
    widths = {len(e.candidates) for e in examples}
    if len(widths) != 1:
        raise UserError("optimizer.calibrate: the examples have different numbers of candidates")
    return torch.cat([s for s, _ in _scores(scorer, examples, batch_size)]).mean(dim=0)


def _scores(
    scorer: Scorer, examples: Sequence[Encoded], batch_size: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Scores and their batch, batch by batch, sorted by length so that little is padded."""
    order = sorted(range(len(examples)), key=lambda i: (examples[i].length, i))
    part: list[Encoded] = []
    for index in order:
        if part and sum(len(e.rows) for e in part) + len(examples[index].rows) > batch_size:
            yield _scored(scorer, part)
            part = []
        part.append(examples[index])
    if part:
        yield _scored(scorer, part)


def _scored(scorer: Scorer, part: list[Encoded]) -> tuple[Tensor, Batch]:
    batch = scorer.batch(part, share=True)
    return scorer.scores(batch)[0], batch
