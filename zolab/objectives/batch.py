"""Encoded examples as tensors: rows, scored positions, and which token is looked up where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.objectives.encode import Encoded, Row
from zolab.objectives.shared import Span, spans_of
from zolab.optim.sent import sent

#: Batches are padded to a multiple of this, so that few shapes occur.
PAD_UNIT = 8


@dataclass(frozen=True)
class Prompts:
    """What answers are generated from, one row an example.

    Attributes:
        input_ids: int64 (examples, tokens), padded on the left, so that all rows end together.
        attention_mask: int64 (examples, tokens), 0 on padding.
        answers: gold texts of each example.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answers: tuple[tuple[str, ...], ...]


@dataclass
class Batch:
    """Tensors of some examples.

    Attributes:
        input_ids: int64 (rows, tokens), padded on the right.
        attention_mask: int64 (rows, tokens), 0 on padding; causal scoring has no use for it.
        select: int64 (scored,), flat index row * tokens + position of each scored position.
        entry: int64 (entries,), index into `select` of each candidate token.
        target: int64 (entries,), the token predicted there.
        owner: int64 (entries,), flat candidate index example * width + candidate.
        counts: float32 (examples, width), tokens of each candidate; 0 where there is none.
        labels: int64 (examples,), the candidate trained on.
        right: bool (examples, width), the candidates that count as correct.
        num_label_tokens: tokens of the candidates trained on, over all examples.
        prompts: what answers are generated from; None where none are.
        spans: rows of each example, where its prompt is to pass the model once; else empty.
        groups: the same for a training batch, whose prompts pass together.
        rows: what is kept of a run's rows is looked up by; empty where nothing is.
    """

    input_ids: Tensor
    attention_mask: Tensor
    select: Tensor
    entry: Tensor
    target: Tensor
    owner: Tensor
    counts: Tensor
    labels: Tensor
    right: Tensor
    num_label_tokens: int
    prompts: Prompts | None = None
    spans: tuple[Span, ...] = ()
    groups: tuple[Span, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def num_scored(self) -> tuple[int, ...]:
        """Rows that the output layer may see of one copy: all that are scored, or a group's."""
        return (len(self.select), *(group.scored for group in self.groups))


def collate(
    encoded: Sequence[Encoded],
    pad_id: int,
    device: torch.device,
    limit: int | None = None,
    share: bool = False,
) -> Batch:
    """Pad and index some encoded examples; rows get no longer than `limit` by padding.

    With `share` prompts with several rows pass the model once, where that is worth it.
    """
    length = padded(max(e.length for e in encoded), limit)
    width = max(len(e.candidates) for e in encoded)
    rows: list[tuple[int, ...]] = []
    place: dict[int, int] = {}
    entry, target, owner = [], [], []
    counts = torch.zeros(len(encoded), width)
    right = torch.zeros(len(encoded), width, dtype=torch.bool)
    for i, example in enumerate(encoded):
        base = len(rows)
        rows.extend(example.rows)
        right[i, list(example.right or (example.label,))] = True
        for j, candidate in enumerate(example.candidates):
            counts[i, j] = len(candidate.targets)
            for position, token in zip(candidate.positions, candidate.targets, strict=True):
                flat = (base + candidate.row) * length + position
                entry.append(place.setdefault(flat, len(place)))
                target.append(token)
                owner.append(i * width + j)
    ids, attention = _fill(rows, length, pad_id)
    tensors = (
        ids,
        attention,
        torch.tensor(list(place)),
        torch.tensor(entry),
        torch.tensor(target),
        torch.tensor(owner),
        counts,
        torch.tensor([e.label for e in encoded]),
        right,
    )
    num_label_tokens = sum(len(e.candidates[e.label].targets) for e in encoded)
    return Batch(
        *(sent(t, device) for t in tensors),
        num_label_tokens=num_label_tokens,
        prompts=_prompts(encoded, pad_id, device),
        spans=spans_of(encoded, length) if share else (),
    )


def _prompts(encoded: Sequence[Encoded], pad_id: int, device: torch.device) -> Prompts | None:
    if not encoded[0].answers:
        return None
    longest = max(len(e.prompt) for e in encoded)
    ids, attention = _fill([e.prompt[::-1] for e in encoded], longest, pad_id)
    ids, attention = sent(ids.flip(1), device), sent(attention.flip(1), device)
    return Prompts(ids, attention, tuple(e.answers for e in encoded))


def _fill(rows: Sequence[tuple[int, ...]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, and 1 where a token is no padding."""
    ids = torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(length) < lengths[:, None]).long()


def padded(longest: int, limit: int | None) -> int:
    """`longest` up to a multiple of `PAD_UNIT`, but not beyond `limit` by padding alone."""
    length = -(-longest // PAD_UNIT) * PAD_UNIT
    return length if limit is None else max(longest, min(length, limit))
