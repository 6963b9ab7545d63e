"""Perturb a module's own weights while it computes, and never otherwise.

Shared by `Paired` and `PerLayer`. Every module that owns trained parameters gets its `forward`
wrapped for the time of one evaluation; inside the wrapper the parameters stand for perturbed copies
made in scratch, so the weights themselves are only read; where few of them move (`signed`), those
few are exchanged and put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.engine import Engine
from zolab.optim.late import number
from zolab.optim.memory import pair_bytes, spread_bytes
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.adapters import Adapters
from zolab.optim.placements.at_once import pair
from zolab.optim.placements.factored import along_factors
from zolab.optim.placements.normed import HalvesNorm
from zolab.optim.placements.pieces import CHUNK_ELEMENTS, Pieces
from zolab.optim.placements.ready import Ready, ready_bytes
from zolab.optim.placements.relus import Relus
from zolab.optim.placements.rows import half_rows, is_plain, join, tensors
from zolab.optim.placements.signed import Copies, Signed, Told


class RowsError(RuntimeError):
    """A module's inputs are not laid out as rows of the batch, so halves cannot be told apart."""


class ModuleWise(Pieces):
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
        self._told = Told(engine)
        self._relus = Relus(model)
        self._adapters = Adapters(self)

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
        signs = (1.0, -1.0) if sign is None else (sign,)
        if self.prepares:
            self._ready.make(self.engine, self.owners, seed, eps, signs)
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
            for name, module, own in self.owners:
                # Not by the module's own way to set attributes, which looks at all it has.
                module.__dict__["forward"] = self._wrap(name, module, own, module.forward)
            if poison is not False:
                for info in self.engine.infos:
                    self.place(info, info.data)
            with (
                self._adapters.evaluating(self._ready.pairs, self._pair, signs),
                self._relus.evaluating(list(self._ready.linear), poison is False),
            ):
                yield
        finally:
            self._told.rest()
            hook.remove()
            for _, module, _ in self.owners:
                module.__dict__.pop("forward", None)
                if id(module) in self._own_forward:
                    module.forward = self._own_forward[id(module)]
            self._poison = False
            for info in self.engine.infos:
                info.param.data = self._clean[info.pid]
            self._clean = {}
            self._sign, self._leading = None, None
            self._active.clear()
            self._ready.clear()

    def losses(
        self,
        seed: int,
        eps: Sequence[float],
        sign: float | None,
        work: Callable[[], Sequence[float]],
    ) -> list[float]:
        """The losses that `work` gives while `evaluating`, as numbers."""
        for _ in range(2):
            with self.evaluating(seed, eps, sign):
                out = [number(loss) for loss in work()]
            if not self._relus.mistaken(out):
                break
        return out

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
        ready, done = ready_bytes(self.engine, self.owners) if self.prepares else (0, frozenset())
        held, beside = self._adapters.bytes(done)
        ready += held
        for name, module, every in self.owners:
            own = [info for info in every if info.pid not in done]
            if is_plain(module, nn.Embedding):
                alone = max(alone, *(spread_bytes(self.engine, info) for info in own))
                continue
            thin = self._factor_bytes(module, own)
            at_most = CHUNK_ELEMENTS if is_plain(module, nn.Linear) else None
            copies, making = (thin, thin) if thin else pair_bytes(self.engine, own, at_most)
            alone = max(alone, making)
            if name != self.owners[-1][0]:
                alive = max(alive, copies)
        return max(alive, beside) + ready, max(alone, beside) + ready

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

    def _wrap(
        self, name: str, module: nn.Module, own: list[ParamInfo], forward: Callable
    ) -> Callable:
        mine = [info.pid for info in own]

        def run(*args: Any, **kwargs: Any) -> Any:
            self.entered.update(mine)
            out = self._planned(name, module, args, kwargs)
            if out is not None:
                return out
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
            with self._perturbed(module, own, self._sign):
                return forward(*args, **kwargs)

        return run

    def _planned(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> Tensor | None:
        """Output of a module that was made ready, None for others."""
        ready, key = self._ready, id(module)
        plan = ready.linear.get(key) or ready.norms.get(key)
        if plan is None or len(args) != 1 or kwargs or key in self._own_forward:
            return None
        if not self.is_free(name, module, args[0], plan.pids):
            return None
        if key in ready.norms:
            return plan(args[0])
        return self._relus.run(module, lambda relu: plan(args[0], relu))

    def is_free(self, name: str, module: nn.Module, x: Tensor, pids: frozenset[int]) -> bool:
        """Whether no outer owner has perturbed these parameters of a module already.

        Raises:
            RowsError: the module's input is not laid out as rows of the batch.
        """
        if self._sign is None:
            self._check_rows(name, module, {x.shape[0]})
        return not self._active.intersection(pids)

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
    def _perturbed(self, module: nn.Module, own: list[ParamInfo], sign: float) -> Iterator[None]:
        """One sign in force; a parameter that an outer owner has already perturbed stays so."""
        todo = self._todo(own)
        outside = [info.param.data for info in todo]
        perturbed = [self._signed(module, info) for info in todo]
        try:
            for info, one in zip(todo, perturbed, strict=True):
                info.param.data = one.of(sign)
                self._active.add(info.pid)
            yield
        finally:
            for info, one, data in zip(todo, perturbed, outside, strict=True):
                info.param.data = data
                self._active.discard(info.pid)
                one.rest()

    def _pair(self, info: ParamInfo) -> tuple[Tensor, Tensor]:
        if info.pid in self._ready.pairs:
            return self._ready.pairs[info.pid]
        weight = self._clean[info.pid]
        mask = self.engine.choice_of(info, weight)
        return pair(self.engine, info, weight, self.seed, self.eps[info.group], mask)

    def _signed(self, module: nn.Module, info: ParamInfo) -> Signed:
        if info.pid in self._ready.pairs:
            return Copies(self._ready.pairs[info.pid])
        weight = self._clean[info.pid]
        mask = self.engine.choice_of(info, weight)
        told = info, weight, self.seed, self.eps[info.group], mask
        # Weights that come just in time may be on their way elsewhere while a module computes, and
        # others may return a part of their weights, as tables of positions do.
        here = self.prepares and is_plain(module, nn.Linear) and id(module) not in self._own_forward
        one = self._told.of(*told, 0, here=here)
        return Copies(pair(self.engine, *told)) if one is None else one

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
        if out is None:
            out = self._normed(module, own, args)
        if out is not None:
            return out
        saved = [info.param.data for info in own]
        perturbed = [self._signed(module, info) for info in own]
        outs = []
        try:
            self._active.update(info.pid for info in own)
            for half, sign in ((0, 1.0), (1, -1.0)):
                self._sign = sign
                for info, one in zip(own, perturbed, strict=True):
                    info.param.data = one.of(sign)
                outs.append(forward(*half_rows(args, half), **half_rows(kwargs, half)))
        finally:
            self._sign = None
            self._active.difference_update(info.pid for info in own)
            for info, one, data in zip(own, perturbed, saved, strict=True):
                info.param.data = data
                one.rest()
        del perturbed, one  # scratch: the joined output must not come on top of it
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
        clean, x, eps = self._clean, args[0], self.eps
        return along_factors(self.engine, module, self._todo(own), clean, x, self.seed, eps, signs)

    def _normed(self, module: nn.Module, own: list[ParamInfo], args: tuple) -> Tensor | None:
        """Output of a layer normalisation in one pass over its rows; None for other modules, and
        where a forward keeps the bits of plain torch."""
        if not self.engine.direction.prepared_bytes() or len(args) != 1:
            return None
        if id(module) in self._own_forward:
            return None
        plan = HalvesNorm.of(module, self._todo(own))
        return plan(args[0]) if plan is not None and plan.aim(self._pair) else None

    def _todo(self, own: list[ParamInfo]) -> list[ParamInfo]:
        """Without those that an outer owner has already perturbed."""
        return [info for info in own if info.pid not in self._active]
