"""One pass of a prompt for all the answers that follow it, when a model is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zolab.objectives.encode import Encoded

#: Sharing must leave at most this part of a batch's tokens, and save so many of each example's: it
#: makes smaller passes, and more of them.
WORTH, SAVED = 0.5, 256
#: Largest difference between logits both ways, times the largest logit, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Span:
    """The token rows of one example in a batch.

    Attributes:
        first: its first row.
        rows: how many it has.
        prefix: tokens at the beginning that all of them share and nothing is scored at.
        length: tokens of the longest.
    """

    first: int
    rows: int
    prefix: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens that pass the model when the prefix passes once."""
        return self.prefix + self.rows * (self.length - self.prefix)


def spans_of(encoded: Sequence[Encoded], length: int) -> tuple[Span, ...]:
    """Where each example's rows are, if sharing prompts is worth it; else nothing.

    Args:
        encoded: the examples of a batch, in order.
        length: tokens that rows are padded to.
    """
    out: list[Span] = []
    first = 0
    for example in encoded:
        out.append(Span(first, len(example.rows), _prefix(example), example.length))
        first += len(example.rows)
    whole, left = first * length, sum(span.num_tokens for span in out)
    worth = left <= WORTH * whole and whole - left >= SAVED * len(out)
    worth = worth and any(span.prefix for span in out)
    return tuple(out) if worth else ()


def _scales_by_length(config: Any) -> bool:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Some models have one for each kind of layer.
    kinds = [rope, *rope.values()] if isinstance(rope, dict) else []
    return any(k.get("rope_type") in ("dynamic", "longrope") for k in kinds if isinstance(k, dict))


def _prefix(example: Encoded) -> int:
    rows = example.rows
    if len(rows) == 1:
        return 0
    limit = min(candidate.positions[0] for candidate in example.candidates)
    same = 0
    for tokens in zip(*(row[:limit] for row in rows), strict=False):
        if len(set(tokens)) > 1:
            break
        same += 1
    return same


class SharedPrompts:
    """Logits of a batch, each example's prompt passed once and kept in the model's own cache.

    On the first batch whose logits are finite they are compared with those of the plain way; a
    model whose cache gives others, or that has none, goes the plain way from then on.

    Args:
        forward: `Scorer.forward` of a causal model: (select, **inputs) to its output.
        config: of the model. Where positions are scaled by the length of the text, a prompt alone
            is not what it is with its answer: such a model goes the plain way.
    """

    def __init__(self, forward: Callable[..., Any], config: Any = None) -> None:
        self.forward = forward
        self.usable: bool | None = False if _scales_by_length(config) else None

    def logits(
        self, input_ids: Tensor, select: Tensor, spans: Sequence[Span], plain: Callable[[], Tensor]
    ) -> Tensor:
        """As `Scorer.logits`, in the order of `select`.

        Args:
            input_ids: int64 (rows, tokens).
            select: int64 (scored,), flat index row * tokens + position, examples in order.
            spans: rows of each example.
            plain: the logits by one pass of all rows.
        """
        if self.usable is False:
            return plain()
        if self.usable:
            return self._shared(input_ids, select, spans)
        expected = plain()
        try:
            found = self._shared(input_ids, select, spans)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # no cache, or another kind of one: whatever it does, it is not used
            self.usable = False
            return expected
        if not bool(expected.isfinite().all()):
            return expected  # nothing to compare with
        bound = TOLERANCE.get(expected.dtype, 0.0) * max(1.0, float(expected.abs().max()))
        same = found.shape == expected.shape
        self.usable = same and bool((found - expected).abs().max() <= bound)
        return found if self.usable else expected

    def _shared(self, input_ids: Tensor, select: Tensor, spans: Sequence[Span]) -> Tensor:
        rows, places = select // input_ids.shape[1], select % input_ids.shape[1]
        out = []
        for span in spans:
            mine = (rows >= span.first) & (rows < span.first + span.rows)
            ids = input_ids[span.first : span.first + span.rows, : span.length]
            tail = span.length - span.prefix
            flat = (rows[mine] - span.first) * tail + places[mine] - span.prefix
            out.append(self._one(ids, span.prefix, flat))
        return torch.cat(out)

    def _one(self, ids: Tensor, prefix: int, select: Tensor) -> Tensor:
        if not prefix:
            return self.forward(select, input_ids=ids, use_cache=False).logits
        first = self.forward(select[:1] * 0, input_ids=ids[:1, :prefix], use_cache=True)
        cache = first.past_key_values
        cache.batch_repeat_interleave(len(ids))
        rest = ids[:, prefix:]
        return self.forward(select, input_ids=rest, past_key_values=cache, use_cache=True).logits
