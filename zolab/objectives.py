"""From examples to losses: tokens, scored positions, log-probabilities of the candidates.

Only the positions that are scored ever reach the output layer; log-softmax and cross-entropy are
made in float32 whatever the model's dtype.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.errors import UserError
from zolab.tasks.base import Example

#: Batches are padded to a multiple of this, so that few shapes occur.
PAD_UNIT = 8


@dataclass(frozen=True)
class Candidate:
    """One answer: where its tokens are predicted.

    Attributes:
        row: token row of the example it lies in.
        positions: index of the hidden state that predicts each token.
        targets: the tokens.
    """

    row: int
    positions: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """An example in tokens; candidates that share a prompt and have one token share a row."""

    rows: tuple[tuple[int, ...], ...]
    candidates: tuple[Candidate, ...]
    label: int
    truncated: bool

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in self.rows)


class Encoder:
    """Turns examples into tokens (MeZO protocol, arXiv 2305.17333, appendix E).

    The tokens of a candidate are those by which prompt + candidate is longer than the prompt. A
    text that is too long is cut on the left, the first special token kept.

    Args:
        tokenizer: of transformers.
        max_length: longest row in tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode in order; UserError if a candidate alone does not fit."""
        prompts = self._tokens([e.prompt for e in examples])
        texts = [e.prompt + c for e in examples for c in e.candidates]
        full = iter(self._tokens(texts))
        out = []
        for example, prompt in zip(examples, prompts, strict=True):
            rows = [next(full) for _ in example.candidates]
            out.append(self._encode(example, prompt, rows))
        return out

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts)["input_ids"] if texts else []

    def _encode(self, example: Example, prompt: list[int], full: list[list[int]]) -> Encoded:
        rows: list[tuple[int, ...]] = []
        place: dict[tuple[int, ...], int] = {}
        candidates, truncated = [], False
        for text, ids in zip(example.candidates, full, strict=True):
            count = len(ids) - len(prompt)
            if count < 1:
                raise UserError(f"candidate {text!r} adds no token to its prompt")
            if count + 1 >= self.max_length:
                raise UserError(
                    f"candidate {text[:40]!r} has {count} tokens; the model takes "
                    f"{self.max_length} with its prompt (task.max_length)"
                )
            # The last token is only ever predicted, never read: it need not be in the row.
            row, cut = self._cut(ids[:-1])
            truncated |= cut
            index = place.setdefault(tuple(row), len(rows))
            if index == len(rows):
                rows.append(tuple(row))
            positions = tuple(range(len(row) - count, len(row)))
            candidates.append(Candidate(index, positions, tuple(ids[-count:])))
        keys = [(rows[c.row], c.targets) for c in candidates]
        if len(set(keys)) < len(keys):
            raise UserError(
                f"candidates {', '.join(map(repr, example.candidates))} have the same tokens"
            )
        return Encoded(tuple(rows), tuple(candidates), example.label, truncated)

    def _cut(self, ids: list[int]) -> tuple[list[int], bool]:
        if len(ids) <= self.max_length:
            return ids, False
        if ids[0] in self._special:
            return [ids[0], *ids[len(ids) - self.max_length + 1 :]], True
        return ids[len(ids) - self.max_length :], True


@dataclass
class Batch:
    """Tensors of some examples.

    Attributes:
        input_ids: int64 (rows, tokens), padded on the right.
        select: int64 (scored,), flat index row * tokens + position of each scored position.
        entry: int64 (entries,), index into `select` of each candidate token.
        target: int64 (entries,), the token predicted there.
        owner: int64 (entries,), flat candidate index example * width + candidate.
        counts: float32 (examples, width), tokens of each candidate; 0 where there is none.
        labels: int64 (examples,).
    """

    input_ids: Tensor
    select: Tensor
    entry: Tensor
    target: Tensor
    owner: Tensor
    counts: Tensor
    labels: Tensor

    @property
    def num_examples(self) -> int:
        return len(self.labels)


def collate(
    encoded: Sequence[Encoded], pad_id: int, device: torch.device, limit: int | None = None
) -> Batch:
    """Pad and index some encoded examples; rows get no longer than `limit` by padding."""
    longest = max(e.length for e in encoded)
    length = -(-longest // PAD_UNIT) * PAD_UNIT
    if limit is not None:
        length = max(longest, min(length, limit))
    width = max(len(e.candidates) for e in encoded)
    rows: list[tuple[int, ...]] = []
    place: dict[int, int] = {}
    entry, target, owner = [], [], []
    counts = torch.zeros(len(encoded), width)
    for i, example in enumerate(encoded):
        base = len(rows)
        rows.extend(example.rows)
        for j, candidate in enumerate(example.candidates):
            counts[i, j] = len(candidate.targets)
            for position, token in zip(candidate.positions, candidate.targets, strict=True):
                flat = (base + candidate.row) * length + position
                entry.append(place.setdefault(flat, len(place)))
                target.append(token)
                owner.append(i * width + j)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    tensors = (
        ids,
        torch.tensor(list(place)),
        torch.tensor(entry),
        torch.tensor(target),
        torch.tensor(owner),
        counts,
        torch.tensor([e.label for e in encoded]),
    )
    return Batch(*(t.to(device) for t in tensors))


class Scorer:
    """A causal language model seen as a scorer of candidates.

    Rows are padded on the right and attention is causal, so padding never reaches a scored
    position and no attention mask is needed.

    Args:
        model: of transformers, causal.
        pad_id: token that fills up rows.
        autocast: dtype of the matrix products in a forward; None for that of the weights.
        limit: positions the model has; None if it has no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        autocast: torch.dtype | None = None,
        limit: int | None = None,
    ) -> None:
        self.model = model
        self.limit = limit
        self.autocast = autocast
        self.pad_id = pad_id
        self.device = next(model.parameters()).device
        self._head = model.get_output_embeddings()
        self._select: Tensor | None = None
        if self._head is None:
            raise UserError(f"{type(model).__name__} has no output layer to read candidates from")
        self._head.register_forward_pre_hook(self._take_scored)

    def batch(self, encoded: Sequence[Encoded]) -> Batch:
        """Encoded examples as tensors for this model."""
        return collate(encoded, self.pad_id, self.device, self.limit)

    def scores(self, batch: Batch, copies: int = 1) -> Tensor:
        """Mean log-probability of each candidate's tokens.

        Args:
            batch: the examples.
            copies: the rows are repeated so many times along dimension 0 (see `Closure`).

        Returns:
            float32 (copies, examples, width), -inf where an example has fewer candidates.
        """
        ids = batch.input_ids.repeat(copies, 1) if copies > 1 else batch.input_ids
        shift = torch.arange(copies, device=ids.device)[:, None] * batch.input_ids.numel()
        self._select = (batch.select + shift).view(-1)
        # The cast weights must not be kept: they are other weights the next time.
        cast = torch.autocast(
            self.device.type, self.autocast, self.autocast is not None, cache_enabled=False
        )
        try:
            with cast:
                logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            self._select = None
        logits = logits.view(copies, len(batch.select), -1).float()
        log_probs = F.log_softmax(logits, dim=-1)[:, batch.entry, batch.target]
        sums = log_probs.new_zeros(copies, batch.counts.numel())
        sums.index_add_(1, batch.owner, log_probs)
        counts = batch.counts.view(-1)
        scores = torch.where(counts > 0, sums / counts.clamp(min=1), -torch.inf)
        return scores.view(copies, *batch.counts.shape)

    def losses(self, batch: Batch, copies: int = 1) -> Tensor:
        """Cross-entropy over the candidates' scores: float32 (copies, examples), nats."""
        scores = self.scores(batch, copies)
        labels = batch.labels.expand(copies, -1)
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(
            copies, -1
        )

    def _take_scored(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._select is None:
            return args
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._select], *args[1:])


@dataclass
class BatchLoss:
    """The loss of one mini-batch as a closure, in micro-batches.

    Sums of per-example losses are added in float64 and divided by the number of examples, so the
    split into micro-batches changes nothing but rounding inside the model.

    Attributes:
        seconds: time spent in forwards so far.
    """

    scorer: Scorer
    batches: Sequence[Batch]
    seconds: float = 0.0
    _rows: tuple[int, ...] = field(default=(), repr=False)

    def __call__(self, copies: int = 1) -> list[float]:
        """Mean loss for each copy of the batch, without a graph."""
        begin = time.perf_counter()
        total = torch.zeros(copies, dtype=torch.float64)
        with torch.inference_mode():
            for batch in self.batches:
                self._rows = (copies * len(batch.select),)
                total += self.scorer.losses(batch, copies).double().sum(1).cpu()
        self.seconds += time.perf_counter() - begin
        return (total / self.num_examples).tolist()

    def tensors(self, copies: int = 1) -> list[Tensor]:
        """The same as float64 tensors that keep their tangents, for forward-mode derivatives."""
        begin = time.perf_counter()
        parts = []
        for batch in self.batches:
            self._rows = (copies * len(batch.select),)
            parts.append(self.scorer.losses(batch, copies).double().sum(1))
        self.seconds += time.perf_counter() - begin
        return list((torch.stack(parts).sum(0) / self.num_examples).unbind())

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of the matrix products where it is not that of the weights."""
        return self.scorer.autocast

    def leading_rows(self) -> tuple[int, ...]:
        """Leading sizes, besides rows and tokens, that the output layer sees."""
        return self._rows

    def backward(self) -> float:
        """Mean loss with gradients accumulated into the parameters."""
        begin = time.perf_counter()
        total = 0.0
        for batch in self.batches:
            loss = self.scorer.losses(batch).sum() / self.num_examples
            loss.backward()
            total += loss.item()
        self.seconds += time.perf_counter() - begin
        return total

    @property
    def num_examples(self) -> int:
        return sum(batch.num_examples for batch in self.batches)
