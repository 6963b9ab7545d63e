"""One pass of a prompt for all the answers that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zolab.objectives.encode import Encoded, rows_of
from zolab.optim.placements.lower import is_known

#: Sharing must leave at most this part of a batch's tokens, and save so many of each example's (in
#: training: for each pass): it makes smaller passes, and more of them.
WORTH, SAVED = 0.6, 256
#: Numbers a token that a plain pass holds at once, in widths of the model: what the caches of a
#: training batch may take.
LIVE = 8
#: Largest difference between logits both ways, times the largest logit, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Span:
    """The token rows of one example in a batch, or of several in a row.

    Attributes:
        first: the first row.
        rows: how many there are.
        prefix: tokens at the beginning that the rows of each example share and nothing is scored
            at.
        length: tokens of the longest.
        starts: where each example begins, counted from `first`.
        scored: positions that are scored in a group of examples.
    """

    first: int
    rows: int
    prefix: int
    length: int
    starts: tuple[int, ...] = (0,)
    scored: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that pass the model when the prefix passes once for each example."""
        return len(self.starts) * self.prefix + self.rows * (self.length - self.prefix)


def spans_of(encoded: Sequence[Encoded], length: int) -> tuple[Span, ...]:
    """Where each example's rows are, if passing each prompt alone is worth it; else nothing.

    Args:
        encoded: the examples of a batch, in order.
        length: tokens that rows are padded to.
    """
    out: list[Span] = []
    first = 0
    for example in encoded:
        prefix = _prefix(example) if len(example.rows) > 1 else 0
        out.append(Span(first, len(example.rows), prefix, example.length))
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


def groups_of(encoded: Sequence[Encoded], length: int, most: float) -> tuple[Span, ...]:
    """A batch's examples in groups whose prompts pass together, if that is worth it; else nothing.

    The prompts of a group pass as far as the shortest of them goes, so that none is padded. A
    group needs two passes, and a placement that perturbs weights while modules compute does so in
    each: of examples one by one there would be too many.

    Args:
        encoded: the examples of a batch, in order.
        length: tokens that rows are padded to.
        most: part of the batch's rows that a group may have.
    """
    counts = [len(example.rows) for example in encoded]
    whole = sum(counts)
    out: list[Span] = []
    start = first = 0
    while start < len(encoded):
        end, rows, starts = start, 0, []
        while end < len(encoded) and (rows + counts[end] <= most * whole or not starts):
            starts.append(rows)
            rows, end = rows + counts[end], end + 1
        if rows > max(most * whole, 1):
            return ()
        together = encoded[start:end]
        prefix, scored = min(map(_prefix, together)), sum(map(_num_scored, together))
        out.append(Span(first, rows, prefix, length, tuple(starts), scored))
        start, first = end, first + rows
    left, passes = sum(span.num_tokens for span in out), 2 * len(out)
    plain = whole * length
    worth = left <= WORTH * plain and plain - left >= SAVED * passes
    return tuple(out) if worth else ()


def _prefix(example: Encoded) -> int:
    rows = example.rows
    limit = min(candidate.positions[0] for candidate in example.candidates)
    same = 0
    for tokens in zip(*(row[:limit] for row in rows), strict=False):
        if len(set(tokens)) > 1:
            break
        same += 1
    return same


def _num_scored(example: Encoded) -> int:
    return sum(len(places) for _, places in rows_of(example))


def _most(model: nn.Module) -> float:
    """Part of a batch's rows whose cache is no larger than what a plain pass holds at once."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LIVE * config.hidden_size / (2 * config.num_hidden_layers * kept * width)


class SharedPrompts:
    """Logits of a batch, each example's prompt passed once and kept in the model's own cache.

    In an evaluation each example's prompt passes alone. On the first batch whose logits are finite
    they are compared with those of the plain way; a model whose cache gives others, or that has
    none, goes the plain way from then on.

    In training prompts pass in groups, see `groups_of`. Whether a batch goes this way depends on
    model and batch alone, so that a run that was interrupted takes the ways of one that was not:
    models of known families do.

    Args:
        forward: `Scorer.forward` of a causal model: (select, **inputs) to its output.
        model: the model. Where positions are scaled by the length of the text, a prompt alone is
            not what it is with its answer: such a model goes the plain way.
    """

    def __init__(self, forward: Callable[..., Any], model: nn.Module) -> None:
        self.forward = forward
        config = getattr(model, "config", None)
        self.usable: bool | None = False if _scales_by_length(config) else None
        self.trains = self.usable is None and is_known(model)
        self.most = _most(model) if self.trains else 0.0

    def groups(self, encoded: Sequence[Encoded], length: int) -> tuple[Span, ...]:
        """How the prompts of a training batch pass; empty for the plain way."""
        return groups_of(encoded, length, self.most) if self.trains else ()

    def logits(
        self, input_ids: Tensor, select: Tensor, spans: Sequence[Span], plain: Callable[[], Tensor]
    ) -> Tensor:
        """As `Scorer.logits`, in the order of `select`; for evaluations.

        Args:
            input_ids: int64 (rows, tokens).
            select: int64 (scored,), flat index row * tokens + position, examples in order.
            spans: rows of each example.
            plain: the logits by one pass of all rows.
        """
        if self.usable is False:
            return plain()
        if self.usable:
            return self.shared(input_ids, select, spans)
        expected = plain()
        try:
            found = self.shared(input_ids, select, spans)
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

    def shared(
        self, input_ids: Tensor, select: Tensor, spans: Sequence[Span], copies: int = 1
    ) -> Tensor:
        """The same without a comparison, for each copy of the rows: (copies * scored, vocabulary).

        Args:
            input_ids, select, spans: as above.
            copies: the rows are repeated so many times along dimension 0.
        """
        rows, places = select // input_ids.shape[1], select % input_ids.shape[1]
        out = []
        for span in spans:
            mine = (rows >= span.first) & (rows < span.first + span.rows)
            ids = input_ids[span.first : span.first + span.rows, : span.length]
            tail = span.length - span.prefix
            flat = (rows[mine] - span.first) * tail + places[mine] - span.prefix
            logits = self._one(ids, span, flat, copies)
            out.append(logits.view(copies, len(flat), -1))
        return torch.cat(out, dim=1).flatten(0, 1)

    def _one(self, ids: Tensor, span: Span, select: Tensor, copies: int) -> Tensor:
        prefix, number = span.prefix, torch.arange(copies, device=ids.device)[:, None]
        select = (select + number * span.rows * (span.length - prefix)).flatten()
        rest = ids[:, prefix:].repeat(copies, 1)
        if not prefix:
            return self.forward(select, input_ids=rest, use_cache=False).logits
        starts = torch.tensor(span.starts)
        prompts = ids[starts.to(ids.device), :prefix].repeat(copies, 1)
        # Every row, though nothing is read there: a placement tells copies apart by rows.
        nowhere = torch.arange(len(prompts), device=ids.device) * prefix
        cache = self.forward(nowhere, input_ids=prompts, use_cache=True).past_key_values
        of = torch.searchsorted(starts, torch.arange(span.rows), right=True) - 1
        # On the CPU, since the layers of a model may be on several devices.
        cache.batch_select_indices(torch.cat([of + i * len(starts) for i in range(copies)]))
        return self.forward(select, input_ids=rest, past_key_values=cache, use_cache=True).logits
