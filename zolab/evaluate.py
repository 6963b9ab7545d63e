"""Loss and accuracy over a split, and calibration of label words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zolab.errors import UserError
from zolab.objectives import Encoded, Scorer, correct


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
    bias: Tensor | None = None,
    on_batch: Callable[[], object] = bool,
) -> Evaluation:
    """Evaluate on a split; argmax of the candidates' mean log-probabilities.

    Args:
        scorer: the model.
        examples: encoded examples.
        batch_size: examples per forward.
        bias: (candidates,) subtracted from the scores, see `calibration`.
        on_batch: called after each forward, to show that the process is alive.
    """
    loss, right = 0.0, 0
    for scores, batch in _scores(scorer, examples, batch_size):
        on_batch()
        if bias is not None:
            scores = scores - bias
        loss += F.cross_entropy(scores, batch.labels, reduction="sum").item()
        right += int(correct(scores[None], batch).sum())
    return Evaluation(loss / len(examples), {"accuracy": right / len(examples)})


@torch.inference_mode()
def calibration(scorer: Scorer, examples: Sequence[Encoded], batch_size: int) -> Tensor:
    """Mean score of each label word over unlabelled prompts: float32 (candidates,).

    Source: after Zhao et al. (arXiv 2102.09690), with training prompts in place of "N/A".
    """
    widths = {len(e.candidates) for e in examples}
    if len(widths) != 1:
        raise UserError("optimizer.calibrate: the examples have different numbers of candidates")
    return torch.cat([s for s, _ in _scores(scorer, examples, batch_size)]).mean(dim=0)


def _scores(scorer: Scorer, examples: Sequence[Encoded], batch_size: int):
    """Scores and their batch, batch by batch, sorted by length so that little is padded."""
    order = sorted(range(len(examples)), key=lambda i: (examples[i].length, i))
    for start in range(0, len(order), batch_size):
        part = [examples[i] for i in order[start : start + batch_size]]
        batch = scorer.batch(part)
        yield scorer.scores(batch)[0], batch
