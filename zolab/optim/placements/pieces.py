"""Outputs of modules whose weights are never perturbed whole, and of those that need no copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.optim.backend import Limit
from zolab.optim.bits import Places, mask_rows
from zolab.optim.engine import Engine
from zolab.optim.linear import multiplier
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.rows import is_plain, join_rows
from zolab.optim.placements.signed import Copies, Told
from zolab.optim.sent import is_here

#: Rows of a big weight perturbed and multiplied at once: scratch stays at a few MB.
CHUNK_ELEMENTS = 1 << 22


class Pieces:
    """What `ModuleWise` does with the weights of an evaluation, module by module."""

    engine: Engine
    seed: int
    eps: Sequence[float]
    _clean: dict[int, Tensor]
    _active: set[int]
    _own_forward: dict[int, Callable]
    prepares: bool
    _told: Told

    def _pair(self, info: ParamInfo) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _batch(self) -> int | None:
        raise NotImplementedError

    def _in_pieces(
        self, module: nn.Module, own: list[ParamInfo], args: tuple, signs: tuple[float, ...]
    ) -> Tensor | None:
        """Output of a module whose weight is never perturbed whole; None for other modules.

        Args:
            module: what computes.
            own: its trained parameters.
            args: what it is called with.
            signs: one for the whole batch, or one for each half of the rows.
        """
        # Called by keyword, nothing is known about the names; a hook's forward does more.
        if not args or id(module) in self._own_forward:
            return None
        if is_plain(module, nn.Embedding) and module.max_norm is None:
            return self._embedding(module, own[0], args[0], signs)
        alone = len(own) == 1 and len(signs) == 2 and is_plain(module, nn.Linear)
        if alone and own[0].param is module.bias:
            return self._biased(module, own[0], args[0])
        big = max(info.numel for info in own) > CHUNK_ELEMENTS
        if is_plain(module, nn.Linear) and big and id(module.weight) in {id(i.param) for i in own}:
            return self._linear(module, own, args[0], signs)
        return None

    def _embedding(
        self, module: nn.Embedding, info: ParamInfo, index: Tensor, signs: tuple[float, ...]
    ) -> Tensor:
        """Only the rows that are looked up are perturbed."""
        weight = self._clean[info.pid]
        if len(signs) == 2 and index.shape[0] == 1 and self._batch() not in (None, 1):
            index = index.expand(2 * self._batch(), *index.shape[1:])
        if not is_here(weight):
            # How many different rows there are only the device knows: do not wait for it.
            halves = zip(index.chunk(len(signs)), signs, strict=True)
            found = [(half, *self._looked_up(info, half.flatten(), (s,))) for half, s in halves]
            return join_rows([rows.view(*half.shape, -1) for half, rows in found])
        used, place = torch.unique(index, return_inverse=True)
        tables = self._looked_up(info, used, signs)
        halves = zip(place.chunk(len(signs)), tables, strict=True)
        return join_rows([F.embedding(half, rows) for half, rows in halves])

    def _looked_up(self, info: ParamInfo, used: Tensor, signs: tuple[float, ...]) -> list[Tensor]:
        """Some rows of a table as each sign perturbs them."""
        weight = self._clean[info.pid]
        step = self.engine.source.rows(info.pid, self.seed, used, weight.shape[1])
        step = step * self.eps[info.group]
        if weight.dtype == torch.float64:
            step = step.to(torch.float64)
        rows = weight[used]
        wide = rows if weight.dtype == torch.float64 else rows.to(torch.float32)
        mask = self.engine.choice_of(info, weight)
        if mask is False:
            step = step.zero_()
        elif mask is not True:
            chosen = mask.of(rows) if isinstance(mask, Limit) else mask_rows(mask, used, rows.shape)
            step.masked_fill_(~chosen, 0.0)
        return [(wide + step if sign > 0 else wide - step).to(weight.dtype) for sign in signs]

    def _biased(self, module: nn.Linear, info: ParamInfo, x: Tensor) -> Tensor:
        """A frozen weight under a trained bias: one product for both signs."""
        out = multiplier(module)(x, module.weight)
        halves = zip(out.chunk(2), self._pair(info), strict=True)
        return join_rows([half + bias for half, bias in halves])

    def _linear(
        self, module: nn.Linear, own: list[ParamInfo], x: Tensor, signs: tuple[float, ...]
    ) -> Tensor:
        """A weight too big for scratch: rows of it are perturbed and multiplied in turn."""
        by_param = {id(info.param): info for info in own}
        info = by_param[id(module.weight)]
        weight = self._clean[info.pid]
        mask = self.engine.choice_of(info, weight)
        outs: list[list[Tensor]] = [[] for _ in signs]
        at_once = max(1, CHUNK_ELEMENTS // weight.shape[1])
        for start in range(0, weight.shape[0], at_once):
            rows = weight[start : start + at_once]
            chosen = mask
            if isinstance(mask, Tensor):
                chosen = mask.view(len(weight), -1)[start : start + at_once]
            offset = start * weight.shape[1]
            products = self._products(module, info, x, rows, chosen, offset, signs)
            for part, product in zip(outs, products, strict=True):
                part.append(product)
        halves = [torch.cat(part, dim=-1) for part in outs]
        if (biases := self._biases(module, by_param)) is not None:
            for half, sign in zip(halves, signs, strict=True):
                half.add_(biases[0 if sign > 0 else 1])
        return join_rows(halves)

    def _products(
        self,
        module: nn.Linear,
        info: ParamInfo,
        x: Tensor,
        rows: Tensor,
        mask: Tensor | Places | Limit | bool,
        offset: int,
        signs: tuple[float, ...],
    ) -> list[Tensor]:
        """Each part of x times the same rows, perturbed; a function, so that scratch ends here."""
        told = info, rows, self.seed, self.eps[info.group], mask, offset
        one = self._told.of(*told, here=self.prepares) or Copies(self.engine.pair_rows(*told))
        parts = zip(x.chunk(len(signs)), signs, strict=True)
        try:
            return [multiplier(module)(part, one.of(sign)) for part, sign in parts]
        finally:
            one.rest()

    def _biases(
        self, module: nn.Linear, by_param: dict[int, ParamInfo]
    ) -> tuple[Tensor, Tensor] | None:
        if module.bias is None:
            return None
        info = by_param.get(id(module.bias))
        stays = info is None or info.pid in self._active
        return (module.bias.data,) * 2 if stays else self._pair(info)
