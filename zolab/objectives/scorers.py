"""A language model seen as a scorer of candidates.

Only the positions that are scored ever reach the output layer; log-softmax and cross-entropy are
made in float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.errors import UserError
from zolab.objectives.batch import Batch, collate
from zolab.objectives.encode import Encoded, rows_of
from zolab.objectives.kept import KeptStates
from zolab.objectives.one_sequence import one_sequence
from zolab.objectives.shared import SharedPrompts


class Scorer:
    """What both kinds of models share; see `CausalScorer` and `MaskedScorer`.

    Args:
        model: of transformers.
        pad_id: token that fills up rows.
        autocast: dtype of the matrix products in a forward; None for that of the weights.
        limit: positions the model has; None if it has no limit.

    Attributes:
        shares: whether a prompt may pass once for several answers, see `batch`.
        kept: what lower layers make of the run's rows, once `keep` was called.
    """

    shares = True
    kept: KeptStates | None = None

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
        self._select: Tensor | None = None
        _head(model).register_forward_pre_hook(self._take_scored)

    @property
    def device(self) -> torch.device:
        """Where inputs go; asked each time, since a placement may move the model."""
        return next(self.model.parameters()).device

    def batch(self, encoded: Sequence[Encoded], share: bool = False, trains: bool = False) -> Batch:
        """Encoded examples as tensors for this model.

        Args:
            encoded: the examples.
            share: as in `collate`, for an evaluation.
            trains: for a training step: prompts with several rows pass together, where that is
                worth it (`groups_of`).
        """
        batch = collate(encoded, self.pad_id, self.device, self.limit, share and self.shares)
        if self.kept is not None:
            batch.rows = tuple(row for example in encoded for row in rows_of(example))
        return batch

    def keep(
        self,
        trained: Iterable[nn.Parameter],
        splits: Sequence[Sequence[Encoded]],
        limit: float,
    ) -> tuple[KeptStates, int]:
        """From now on, let layers that never move pass each row of some splits only once.

        Args:
            trained: the parameters that move.
            splits: as `KeptStates.hold` takes them.
            limit: bytes.

        Returns:
            What is kept, and of how many splits; of none the model goes the plain way.
        """

        def forward(input_ids: Tensor, attention_mask: Tensor) -> None:
            self.forward(torch.zeros_like(input_ids[0]), **self._inputs(input_ids, attention_mask))

        states = KeptStates(self.model, trained, forward, self.limit)
        number = states.hold(splits, limit)
        self.kept = states if number else None
        return states, number

    def scores(self, batch: Batch, copies: int = 1) -> Tensor:
        """Mean log-probability of each candidate's tokens.

        Args:
            batch: the examples.
            copies: the rows are repeated so many times along dimension 0 (see `Closure`).

        Returns:
            float32 (copies, examples, width), -inf where an example has fewer candidates.
        """
        logits = self._scored(batch, copies)
        logits = logits.view(copies, len(batch.select), -1).float()
        log_probs = F.log_softmax(logits, dim=-1)[:, batch.entry, batch.target]
        sums = log_probs.new_zeros(copies, batch.counts.numel())
        sums.index_add_(1, batch.owner, log_probs)
        counts = batch.counts.view(-1)
        scores = torch.where(counts > 0, sums / counts.clamp(min=1), -torch.inf)
        return scores.view(copies, *batch.counts.shape)

    def _scored(self, batch: Batch, copies: int) -> Tensor:
        """Logits at the scored positions of each copy: (copies * scored, vocabulary)."""
        shift = torch.arange(copies, device=self.device)[:, None] * batch.input_ids.numel()
        rows = (_repeat(t, copies) for t in (batch.input_ids, batch.attention_mask))
        with self.kept.standing_in(batch) if self._keeps(batch) else nullcontext():
            return self.logits((batch.select + shift).view(-1), **self._inputs(*rows))

    def _keeps(self, batch: Batch) -> bool:
        # Not in a graph: what is kept has no derivative.
        return self.kept is not None and torch.is_inference_mode_enabled() and self.kept.has(batch)

    def losses(self, batch: Batch, copies: int = 1) -> Tensor:
        """Cross-entropy over the candidates' scores: float32 (copies, examples), nats."""
        scores = self.scores(batch, copies)
        labels = batch.labels.expand(copies, -1)
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(
            copies, -1
        )

    def features(self, batch: Batch) -> Tensor:
        """What the output layer reads where each example's first candidate is predicted.

        Returns:
            (examples, hidden) in the dtype of the forward, without a graph.
        """
        width = batch.counts.shape[1]
        begins = torch.arange(batch.num_examples, device=self.device) * width
        entries = torch.searchsorted(batch.owner, begins)
        read: list[Tensor] = []
        hook = _head(self.model).register_forward_pre_hook(
            lambda module, args: read.append(args[0])
        )
        try:
            with torch.inference_mode():
                rows = batch.input_ids, batch.attention_mask
                self.logits(batch.select[batch.entry[entries]], **self._inputs(*rows))
        finally:
            hook.remove()
        return read[-1]

    def logits(self, select: Tensor, **inputs: Any) -> Tensor:
        """One forward whose output layer sees the rows `select` of the flattened hidden states.

        Args:
            select: int64 (scored,), flat index row * tokens + position.
            inputs: what the model is called with.

        Returns:
            Logits in the model's dtype, (scored, vocabulary).
        """
        return self.forward(select, **inputs).logits

    def forward(self, select: Tensor, **inputs: Any) -> Any:
        """The model's whole output of one forward, see `logits`."""
        self._select = select
        # The cast weights must not be kept: they are other weights the next time.
        cast = torch.autocast(
            self.device.type, self.autocast, self.autocast is not None, cache_enabled=False
        )
        try:
            with cast, one_sequence():
                return self.model(**inputs)
        finally:
            self._select = None

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        raise NotImplementedError

    def _take_scored(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._select is None:
            return args
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._select], *args[1:])


class CausalScorer(Scorer):
    """Candidates follow their prompt.

    Rows are padded on the right and attention is causal, so padding never reaches a scored
    position and no attention mask is needed.
    """

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.shared = SharedPrompts(self.forward, model)

    def batch(self, encoded: Sequence[Encoded], share: bool = False, trains: bool = False) -> Batch:
        batch = super().batch(encoded, share, trains)
        if trains and self.shares:
            batch.groups = self.shared.groups(encoded, batch.input_ids.shape[1])
        return batch

    def _scored(self, batch: Batch, copies: int) -> Tensor:
        def plain() -> Tensor:
            return super(CausalScorer, self)._scored(batch, copies)

        if self._keeps(batch):
            return plain()
        if batch.groups and torch.is_inference_mode_enabled():  # no cache in a graph
            return self.shared.shared(batch.input_ids, batch.select, batch.groups, copies)
        if copies > 1 or not batch.spans:
            return plain()
        return self.shared.logits(batch.input_ids, batch.select, batch.spans, plain)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        return {"input_ids": input_ids, "use_cache": False}


class MaskedScorer(Scorer):
    """Candidates stand where the mask is; padding is hidden by an attention mask."""

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def _head(model: nn.Module) -> nn.Module:
    """The part of a model that makes logits of hidden states, one row like another.

    In a masked model more than a matrix: all of it, so that rows are chosen before its first layer.
    """
    inner = model.get_output_embeddings()
    if inner is None:
        raise UserError(f"{type(model).__name__} has no output layer to read candidates from")
    backbone = getattr(model, "base_model", None)
    for child in model.children():
        if child is not backbone and any(module is inner for module in child.modules()):
            return child
    return inner


def _repeat(rows: Tensor, copies: int) -> Tensor:
    return rows.repeat(copies, 1) if copies > 1 else rows
