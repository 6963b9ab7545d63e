"""Perturb a module's own weights while it computes, and never otherwise.

Shared by `Paired` and `PerLayer`. Every module that owns trained parameters gets its `forward`
wrapped for the time of one evaluation; inside the wrapper the parameters stand for perturbed copies
made in scratch, so the weights themselves are only ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.optim.backend import Limit
from zolab.optim.bits import mask_rows
from zolab.optim.engine import Engine
from zolab.optim.linear import multiplier
from zolab.optim.memory import pair_bytes, spread_bytes
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.factored import add_products_
from zolab.optim.placements.ready import Ready, ready_bytes
from zolab.optim.placements.rows import half_rows, is_plain, join, join_rows, tensors

#: Rows of a big weight perturbed and multiplied at once: scratch stays at a few MB.
CHUNK_ELEMENTS = 1 << 22


class RowsError(RuntimeError):
    """A module's inputs are not laid out as rows of the batch, so halves cannot be told apart."""


class ModuleWise:
    """Wraps the modules of a model that own trained parameters.

    Args:
        model: the model; its first tensor argument's leading dimension is the batch.
        engine: trained parameters, noise and masks.
    """

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model = model
        self.engine = engine
        by_id = {id(info.param): info for info in engine.infos}
        self.owners: list[tuple[str, nn.Module, list[ParamInfo]]] = []
        for name, module in model.named_modules():
            own = [by_id[id(p)] for p in module.parameters(recurse=False) if id(p) in by_id]
            if own:
                self.owners.append((name, module, own))
        self.seed, self.eps = 0, ()
        self.entered: set[int] = set()
        self._sign: float | None = None
        self._own_forward: dict[int, Callable] = {}  # forwards that hooks put on a module
        self._active: set[int] = set()
        self._clean: dict[int, Tensor] = {}
        self._poison: bool | int = False
        self._leading: tuple[int, int] | None = None
        self.extra_rows: Callable[[], Sequence[int]] = tuple
        #: Whether the weights are at hand before the modules that own them are called.
        self.prepares = True
        self._ready = Ready()

    @contextmanager
    def evaluating(
        self,
        seed: int,
        eps: Sequence[float],
        sign: float | None,
        poison: bool | int = False,
    ) -> Iterator[None]:
        """While active, each owner computes with perturbed weights.

        Args:
            seed: direction.
            eps: perturbation scale per parameter group.
            sign: +1 or -1 for the whole batch; None gives +1 to the first half of the rows and
                -1 to the second.
            poison: outside their owners' forward the parameters (True: all; a number: the one
                with that id) read NaN, so that a module which reads a weight that is not its own
                shows in the loss.
        """
        self.seed, self.eps, self._sign = seed, tuple(eps), sign
        self.entered.clear()
        self._clean = {info.pid: info.param.data for info in self.engine.infos}
        self._poison = poison
        if self.prepares:
            self._ready.make(self.engine, self.owners, seed, eps)
        # first of all: a hook of the model itself may put something before the text
        hook = self.model.register_forward_pre_hook(
            self._note_batch, with_kwargs=True, prepend=True
        )
        # accelerate puts a forward of its own on modules (mixed precision, device maps).
        self._own_forward = {
            id(module): module.__dict__["forward"]
            for _, module, _ in self.owners
            if "forward" in module.__dict__
        }
        try:
            for _, module, own in self.owners:
                module.forward = self._wrap(module, own, module.forward)
            for info in self.engine.infos:
                self.place(info, info.data)
            yield
        finally:
            hook.remove()
            for _, module, _ in self.owners:
                del module.forward
                if id(module) in self._own_forward:
                    module.forward = self._own_forward[id(module)]
            self._poison = False
            for info in self.engine.infos:
                info.param.data = self._clean[info.pid]
            self._clean = {}
            self._sign, self._leading = None, None
            self._active.clear()
            self._ready.clear()

    @property
    def active(self) -> bool:
        """Whether owners compute with perturbed weights at the moment."""
        return bool(self._clean)

    def place(self, info: ParamInfo, data: Tensor) -> None:
        """The clean weights of a parameter are in `data` from now on, also during an evaluation."""
        if self._clean:
            self._clean[info.pid] = data
        info.param.data = data
        if self._poison is True or (self._poison is not False and self._poison == info.pid):
            nan = torch.full((), torch.nan, dtype=data.dtype, device=data.device)
            info.param.data = nan.expand(data.shape)

    def scratch_bytes(self) -> tuple[int, int]:
        """Scratch of a perturbed forward: beside the activations, and where there are few.

        Few there are at both ends of a model (where rows are looked up, in its last module), and
        while copies are being made: the module's outputs come later.
        """
        alive = alone = 0
        for name, module, own in self.owners:
            if is_plain(module, nn.Embedding):
                alone = max(alone, *(spread_bytes(self.engine, info) for info in own))
                continue
            thin = self._factor_bytes(module, own)
            at_most = CHUNK_ELEMENTS if is_plain(module, nn.Linear) else None
            copies, making = (thin, thin) if thin else pair_bytes(self.engine, own, at_most)
            alone = max(alone, making)
            if name != self.owners[-1][0]:
                alive = max(alive, copies)
        ready = ready_bytes(self.engine, self.owners) if self.prepares else 0
        return alive + ready, alone + ready

    def _factor_bytes(self, module: nn.Module, own: list[ParamInfo]) -> int | None:
        """Bytes of what `_factored` makes beside its output; None for other modules."""
        mine = [info for info in own if is_plain(module, nn.Linear) and info.param is module.weight]
        return self.engine.direction.factor_bytes(mine[0]) if mine else None

    # -- the wrapper -----------------------------------------------------------------------------

    def _note_batch(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        first = next(iter(tensors((args, kwargs))), None)
        if first is not None:
            tokens = first.shape[0] * first.shape[1] if first.dim() > 1 else first.shape[0]
            self._leading = (first.shape[0], tokens)

    def _wrap(self, module: nn.Module, own: list[ParamInfo], forward: Callable) -> Callable:
        name = next(n for n, m, _ in self.owners if m is module)

        def run(*args: Any, **kwargs: Any) -> Any:
            self.entered.update(info.pid for info in own)
            if self.stands(own):
                with self._clean_inside(own):
                    return forward(*args, **kwargs)
            if self._sign is None:
                return self._both(name, module, own, forward, args, kwargs)
            out = self._factored(module, own, args, (self._sign,))
            if out is None and not self._active.intersection(info.pid for info in own):
                out = self._in_pieces(module, own, args, (self._sign,))
            if out is not None:
                return out
            with self._perturbed(own, self._sign):
                return forward(*args, **kwargs)

        return run

    def stands(self, own: list[ParamInfo]) -> bool:
        """Whether a mask of whole layers leaves all of a module's weights alone in this step."""
        choice, whole = self.engine.choice_of, self.engine.mask.structured
        return whole and all(choice(info, self._clean[info.pid]) is False for info in own)

    @contextmanager
    def _clean_inside(self, own: list[ParamInfo]) -> Iterator[None]:
        """The weights as they are, also where they are poisoned outside."""
        outside = [info.param.data for info in own]
        for info in own:
            info.param.data = self._clean[info.pid]
        try:
            yield
        finally:
            for info, data in zip(own, outside, strict=True):
                info.param.data = data

    @contextmanager
    def _perturbed(self, own: list[ParamInfo], sign: float) -> Iterator[None]:
        """One sign in force; a parameter that an outer owner has already perturbed stays so."""
        todo = [info for info in own if info.pid not in self._active]
        outside = [info.param.data for info in todo]
        copies = [self._pair(info)[0 if sign > 0 else 1] for info in todo]
        try:
            for info, copy in zip(todo, copies, strict=True):
                info.param.data = copy
                self._active.add(info.pid)
            yield
        finally:
            for info, data in zip(todo, outside, strict=True):
                info.param.data = data
                self._active.discard(info.pid)

    def _pair(self, info: ParamInfo) -> tuple[Tensor, Tensor]:
        if info.pid in self._ready.pairs:
            return self._ready.pairs[info.pid]
        return self.engine.pair(info, self._clean[info.pid], self.seed, self.eps[info.group])

    def _both(
        self,
        name: str,
        module: nn.Module,
        own: list[ParamInfo],
        forward: Callable,
        args: tuple,
        kwargs: dict,
    ) -> Any:
        """First half of the rows with W + eps z, second half with W - eps z."""
        sizes = {t.shape[0] for t in tensors((args, kwargs)) if t.dim() > 0}
        self._check_rows(name, module, sizes)
        out = self._factored(module, own, args, (1.0, -1.0))
        if out is None:
            out = self._in_pieces(module, own, args, (1.0, -1.0))
        if out is not None:
            return out
        saved = [info.param.data for info in own]
        pairs = [self._pair(info) for info in own]
        outs = []
        try:
            self._active.update(info.pid for info in own)
            for half, sign in ((0, 1.0), (1, -1.0)):
                self._sign = sign
                for info, both in zip(own, pairs, strict=True):
                    info.param.data = both[half]
                outs.append(forward(*half_rows(args, half), **half_rows(kwargs, half)))
        finally:
            self._sign = None
            self._active.difference_update(info.pid for info in own)
            for info, data in zip(own, saved, strict=True):
                info.param.data = data
        del pairs, both  # scratch: the joined output must not come on top of it
        return join(outs[0], outs[1], self._batch() if sizes <= {1} else None)

    def leading_rows(self) -> int:
        """Rows that the model is called with at the moment, 0 if nothing is known."""
        return 0 if self._leading is None else self._leading[0]

    def _batch(self) -> int | None:
        return self.leading_rows() // 2 or None

    def _check_rows(self, name: str, module: nn.Module, sizes: set[int]) -> None:
        allowed = {1, *self.extra_rows()}
        if self._leading is not None:
            allowed |= set(self._leading)
            bad = sizes - allowed
        else:
            bad = {size for size in sizes if size != 1 and size % 2}
        if bad:
            raise RowsError(
                f"module {name} ({type(module).__name__}) gets inputs with {sorted(bad)} rows; "
                f"expected {sorted(allowed)}"
            )

    def _factored(
        self, module: nn.Module, own: list[ParamInfo], args: tuple, signs: tuple[float, ...]
    ) -> Tensor | None:
        """Output of a linear layer whose z is a product of thin factors; None for other modules.

        One product with the weight as it is, for both signs, and two thin ones.
        """
        if not args or id(module) in self._own_forward or not is_plain(module, nn.Linear):
            return None
        by_param = {id(info.param): info for info in own}
        info = by_param.get(id(module.weight))
        if info is None or info.pid in self._active or args[0].shape[0] % len(signs):
            return None
        weight = self._clean[info.pid]
        thin = self.engine.factors(info, weight, self.seed)
        if thin is None:
            return None
        eps, bias, shift = self.eps[info.group], module.bias, None
        added = by_param.get(id(bias))
        if added is not None and added.pid not in self._active:
            bias = self._clean[added.pid]
            z = self._ready.zs.get(added.pid)
            z = self.engine.whole_z(added, bias, self.seed) if z is None else z
            shift = z, self.eps[added.group] / eps
        out = multiplier(module)(args[0], weight, bias)
        return add_products_(out, args[0], *thin, [sign * eps for sign in signs], shift)

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
        used, place = torch.unique(index, return_inverse=True)
        width = weight.shape[1]
        step = self.engine.source.rows(info.pid, self.seed, used, width)
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
        tables = [(wide + step if sign > 0 else wide - step).to(weight.dtype) for sign in signs]
        halves = zip(place.chunk(len(signs)), tables, strict=True)
        return join_rows([F.embedding(half, rows) for half, rows in halves])

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
        mask: Tensor | Limit | bool,
        offset: int,
        signs: tuple[float, ...],
    ) -> list[Tensor]:
        """Each part of x times the same rows, perturbed; a function, so that scratch ends here."""
        eps = self.eps[info.group]
        both = self.engine.pair_rows(info, rows, self.seed, eps, mask, offset)
        parts = zip(x.chunk(len(signs)), signs, strict=True)
        return [multiplier(module)(part, both[0 if sign > 0 else 1]) for part, sign in parts]

    def _biases(
        self, module: nn.Linear, by_param: dict[int, ParamInfo]
    ) -> tuple[Tensor, Tensor] | None:
        if module.bias is None:
            return None
        info = by_param.get(id(module.bias))
        stays = info is None or info.pid in self._active
        return (module.bias.data,) * 2 if stays else self._pair(info)
