"""What is minimised, and the loss of one mini-batch as a closure."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zolab.objectives.batch import Batch
from zolab.objectives.captured import Graphs
from zolab.objectives.generate import Generator
from zolab.objectives.metrics import best_f1
from zolab.objectives.scorers import Scorer
from zolab.optim.clock import Clock
from zolab.optim.late import Late


class Objective:
    """A loss as a weighted mean over what a batch holds.

    Attributes:
        name: value of `train.objective`.
        differentiable: whether it has a gradient.
        label_only: whether it reads the right candidate alone.
    """

    name: str
    differentiable = True
    label_only = False

    def terms(self, scorer: Scorer, batch: Batch, copies: int) -> Tensor:
        """float32 (copies, examples); their sum over `weight` is the loss."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> int:
        """What the sum of the batch's terms is divided by."""
        return batch.num_examples


class Options(Objective):
    """Cross-entropy over the candidates' mean log-probabilities, mean over examples, nats.

    Under a mask, where a candidate is one token, this is the cross-entropy over the label words'
    logits alone. Source: MeZO (arXiv 2305.17333), appendix E.
    """

    name = "options"

    def terms(self, scorer: Scorer, batch: Batch, copies: int) -> Tensor:
        return scorer.losses(batch, copies)


class LanguageModel(Objective):
    """Minus the log-probability of the right candidate's tokens, mean over all such tokens, nats.

    Not a mean over examples first: a long answer counts more. Source: as `Options`.
    """

    name = "lm"
    label_only = True

    def terms(self, scorer: Scorer, batch: Batch, copies: int) -> Tensor:
        return label_nll(scorer.scores(batch, copies), batch)

    def weight(self, batch: Batch) -> int:
        return batch.num_label_tokens


class NegativeAccuracy(Objective):
    """Minus the share of examples whose best candidate is right; has no gradient.

    Source: MeZO (arXiv 2305.17333), section 3.3.
    """

    name = "accuracy"
    differentiable = False

    def terms(self, scorer: Scorer, batch: Batch, copies: int) -> Tensor:
        scores = scorer.scores(batch, copies)
        terms = -correct(scores, batch).float()
        return terms.masked_fill(scores.isnan().any(dim=-1), torch.nan)


class NegativeF1(Objective):
    """Minus the mean token F1 of greedily generated answers; has no gradient.

    Source: MeZO (arXiv 2305.17333), section 3.3.

    Args:
        generator: decodes answers.
    """

    name = "f1"
    differentiable = False

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def terms(self, scorer: Scorer, batch: Batch, copies: int) -> Tensor:
        texts = self.generator.texts(scorer, batch.prompts, copies)
        golds = batch.prompts.answers
        scores = [
            [torch.nan if text is None else best_f1(text, gold) for text, gold in each]
            for each in (zip(part, golds, strict=True) for part in texts)
        ]
        return -torch.tensor(scores, dtype=torch.float32, device=scorer.device)


def label_nll(scores: Tensor, batch: Batch) -> Tensor:
    """Minus the log-probability of each right candidate: (copies, examples), nats.

    Args:
        scores: (copies, examples, width), mean log-probabilities a token.
        batch: what they are of.
    """
    index = batch.labels[:, None]
    chosen = scores.gather(2, index.expand(len(scores), -1, 1))
    return -(chosen * batch.counts.gather(1, index))[:, :, 0]


def correct(scores: Tensor, batch: Batch) -> Tensor:
    """Whether the best candidate is right: bool (copies, examples) from (copies, examples, width).

    Scores that are not a number answer nothing.
    """
    best = scores.argmax(dim=-1)
    hit = batch.right.expand(len(scores), -1, -1).gather(2, best[:, :, None])[:, :, 0]
    return hit & ~scores.isnan().any(dim=-1)


OPTIONS, LM, ACCURACY = Options(), LanguageModel(), NegativeAccuracy()
#: Objectives that are a likelihood, by name: what `dev/loss` can be.
LIKELIHOODS: dict[str, Objective] = {"options": OPTIONS, "lm": LM}


@dataclass
class BatchLoss:
    """The loss of one mini-batch as a closure, in micro-batches.

    Sums of terms are added in float64 and divided by the weight of the whole batch, so the split
    into micro-batches changes nothing but rounding inside the model.

    Attributes:
        objective: what is minimised.
        seconds: time spent in forwards so far.
        clock: what an optimizer does within them, too, is on; None for no such clock.
        woven: the part of `seconds` that is on that clock.
        graphs: recorded forwards; None for plain ones.
        late: losses stay on the device, as `zolab.optim.late.Late`; `seconds` is then what it took
            to put the forwards in line.
    """

    scorer: Scorer
    batches: Sequence[Batch]
    objective: Objective = OPTIONS
    seconds: float = 0.0
    clock: Clock | None = None
    woven: float = 0.0
    graphs: Graphs | None = None
    late: bool = False
    _rows: tuple[int, ...] = field(default=(), repr=False)

    def __call__(self, copies: int = 1) -> list[float] | list[Late]:
        """Mean loss for each copy of the batch, without a graph."""
        total = self.sums(copies)
        if not self.late:
            return (total / self.weight).tolist()
        return [Late(one) / self.weight for one in total]

    def sums(self, copies: int = 1) -> Tensor:
        """Sum of the terms of each copy, (copies,) in float64, without a graph; on the host, or
        where the model is if they are late."""
        begin, other = time.perf_counter(), self._other()
        where = self.scorer.device if self.late else torch.device("cpu")
        total = torch.zeros(copies, dtype=torch.float64, device=where)
        with torch.inference_mode():
            for batch in self.batches:
                self._rows = tuple(copies * number for number in batch.num_scored)
                total += self._terms(batch, copies).double().sum(1).to(where)
        self.seconds += time.perf_counter() - begin
        self.woven += self._other() - other
        return total

    def _terms(self, batch: Batch, copies: int) -> Tensor:
        def plain(batch: Batch) -> Tensor:
            return self.objective.terms(self.scorer, batch, copies)

        return plain(batch) if self.graphs is None else self.graphs.terms(plain, batch, copies)

    def _other(self) -> float:
        return 0.0 if self.clock is None else self.clock.total

    def tensors(self, copies: int = 1) -> list[Tensor]:
        """The same as float64 tensors that keep their tangents, for forward-mode derivatives."""
        begin = time.perf_counter()
        parts = []
        for batch in self.batches:
            self._rows = tuple(copies * number for number in batch.num_scored)
            parts.append(self.objective.terms(self.scorer, batch, copies).double().sum(1))
        self.seconds += time.perf_counter() - begin
        return list((torch.stack(parts).sum(0) / self.weight).unbind())

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of the matrix products where it is not that of the weights."""
        return self.scorer.autocast

    def leading_rows(self) -> tuple[int, ...]:
        """Leading sizes, besides rows and tokens, that the output layer sees."""
        return self._rows

    def backward(self) -> float:
        """Mean loss with gradients accumulated into the parameters, all of them if it is finite."""
        begin = time.perf_counter()
        total = 0.0
        for batch in self.batches:
            loss = self.objective.terms(self.scorer, batch, 1).sum() / self.weight
            total += loss.item()
            if not math.isfinite(total):
                break  # no gradient of it is of use, and some optimizers move during backward
            loss.backward()
        self.seconds += time.perf_counter() - begin
        return total

    @property
    def weight(self) -> int:
        """What the sum of terms is divided by."""
        return sum(self.objective.weight(batch) for batch in self.batches)

    @property
    def num_examples(self) -> int:
        return sum(batch.num_examples for batch in self.batches)
