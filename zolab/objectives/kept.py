"""What frozen lower layers make of a run's rows, kept over its epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab.objectives.batch import Batch, padded
from zolab.objectives.encode import Encoded, Row, rows_of
from zolab.optim.placements.lower import is_known, layers_of


class KeptStates:
    """Hidden states above the layers that never move, for rows that come again.

    A row's states are those of a pass of that row alone, padded by itself, whoever else is in its
    batch and whether they are kept or made anew: so nothing depends on what was seen before, and a
    run that was interrupted has the numbers of one that was not. Which rows are kept is settled
    before the first step. A batch with any other row goes the plain way.

    Where nothing but the output layer trains, only the scored places of a row are kept.

    Args:
        model: of transformers; one of the known families.
        trained: the parameters that move; all else must stay as it is. Where it does not, the
            states are made anew.
        forward: one forward of rows, (input_ids, attention_mask).
        limit: positions the model has; None if it has no limit.

    Attributes:
        start: how many layers are below; 0 where nothing can be kept.
        num_bytes: what is kept at most.
        num_wanted: what the first split alone takes.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        forward: Callable[[Tensor, Tensor], Any],
        limit: int | None = None,
    ) -> None:
        self._forward, self._limit = forward, limit
        moving = {id(param) for param in trained}
        self._frozen = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in moving]
        self._owners = [
            module
            for module in model.modules()
            if any(id(p) in moving for p in module.parameters(recurse=False))
        ]
        self._layers = [block.module for block in layers_of(model)] if is_known(model) else []
        trains = (any(id(p) in moving for p in layer.parameters()) for layer in self._layers)
        self.start = next((i for i, yes in enumerate(trains) if yes), len(self._layers))
        self.num_bytes = self.num_wanted = 0
        self._rows: set[Row] = set()
        self._kept: dict[Row, Tensor] = {}
        self._tuple = False
        self._seen: list[tuple[int, int]] = []

    def hold(self, splits: Sequence[Sequence[Encoded]], limit: float) -> int:
        """Settle which rows are kept: those of the first splits that fit whole.

        Args:
            splits: encoded examples, the most important first.
            limit: bytes.

        Returns:
            How many splits fit; 0 as well where something moves below the layers that train.
        """
        wanted = [{row for e in split for row in rows_of(e)} for split in splits]
        first = next(iter(sorted(wanted[0])))
        ids = torch.tensor([first[0]], device=self._frozen[0].device)
        try:
            state = self._make(ids, torch.ones_like(ids)) if self.start else None
        except _MovesError:
            self.start = 0
        if not self.start:
            return 0
        width = state.shape[-1] * state.element_size()
        fit = 0
        for rows in wanted:
            more = sum(width * self._num_states(row) for row in rows - self._rows)
            self.num_wanted = self.num_wanted or more
            if self.num_bytes + more > limit:
                break
            self.num_bytes += more
            self._rows |= rows
            fit += 1
        return fit

    def has(self, batch: Batch) -> bool:
        """Whether a batch goes this way: its rows alone decide."""
        return bool(self.start) and all(row in self._rows for row in batch.rows)

    @contextmanager
    def standing_in(self, batch: Batch) -> Iterator[None]:
        """While active, the lower layers compute nothing and give what is kept of the batch."""
        states = self._states(batch)
        outside = [layer.__dict__.get("forward") for layer in self._layers[: self.start]]

        def passes(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if self._tuple else hidden

        def gives(*args: Any, **kwargs: Any) -> Any:
            # A placement may call with both signs' rows or with one sign's.
            hidden = args[0] if args else kwargs["hidden_states"]
            out = states.repeat(len(hidden) // len(states), 1, 1)
            return (out,) if self._tuple else out

        try:
            for i, layer in enumerate(self._layers[: self.start]):
                layer.forward = passes if i < self.start - 1 else gives
            yield
        finally:
            for layer, forward in zip(self._layers, outside, strict=False):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def _states(self, batch: Batch) -> Tensor:
        """(rows, tokens, width): of each row what it gives alone, 0 where nothing is read."""
        seen = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._frozen]
        if seen != self._seen:
            self._kept.clear()
            self._seen = seen
        found = []
        for i, row in enumerate(batch.rows):
            if row not in self._kept:
                end = padded(len(row[0]), self._limit)
                ids, mask = batch.input_ids[i : i + 1, :end], batch.attention_mask[i : i + 1, :end]
                made = self._make(ids, mask)[0]
                places = torch.tensor(row[1], device=made.device)
                alone = made[: len(row[0])] if self._below_something() else made[places]
                self._kept[row] = alone.clone()
            found.append(self._kept[row])
        rows, tokens = batch.input_ids.shape
        out = found[0].new_zeros(rows, tokens, found[0].shape[-1])
        for i, (row, states) in enumerate(zip(batch.rows, found, strict=True)):
            places = slice(len(row[0]))
            if not self._below_something():
                places = torch.tensor(row[1], device=out.device)
            out[i, places] = states
        return out

    def _below_something(self) -> bool:
        """Whether layers read the states, and not the output layer alone."""
        return self.start < len(self._layers)

    def _num_states(self, row: Row) -> int:
        return len(row[0]) if self._below_something() else len(row[1])

    def _make(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(rows, tokens, width) behind the last lower layer, by a pass that ends there."""

        def behind(module: nn.Module, args: tuple, out: Any) -> None:
            raise _Reached(out)

        def moves(module: nn.Module, args: tuple) -> None:
            raise _MovesError

        hooks = [self._layers[self.start - 1].register_forward_hook(behind)]
        hooks += [owner.register_forward_pre_hook(moves) for owner in self._owners]
        try:
            with torch.inference_mode():
                self._forward(ids, mask)
        except _Reached as reached:
            out = reached.out
            self._tuple = isinstance(out, tuple)
            return out[0] if self._tuple else out
        finally:
            for hook in hooks:
                hook.remove()
        raise _MovesError  # the layer is not where all rows pass


class _Reached(Exception):
    """Carries what a pass gave where it ended."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out


class _MovesError(Exception):
    """Something below the layers that train is not always the same."""
