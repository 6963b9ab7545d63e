"""LoRA's terms added where the layer beside them writes its output.

As peft has it, the input passes memory once for A, and the output four times more: for B, for the
scale, for the sum and for the two halves of the batch. Here both halves of both are one pass over
the input and one over the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from zolab.optim.native.products import by_columns
from zolab.optim.native.thin import Thin, takes_thin
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.rows import is_plain

if TYPE_CHECKING:
    from zolab.optim.placements.modulewise import ModuleWise

#: Where peft's linear layer with LoRA beside it is defined; no import, since peft may not be there.
_PEFT = ("peft.tuners.lora.layer", "Linear")


#: A parameter perturbed to both sides, and what makes that.
Both = tuple[Tensor, Tensor]
Pairing = Callable[[ParamInfo], Both]


@dataclass(frozen=True)
class Adapter:
    """A linear layer with one adapter in force that computes base(x) + scale * B A x and no more.

    Attributes:
        layer: peft's layer.
        base: what is beside the adapter.
        down, up: the modules of A (r, n) and B (m, r).
        drop: dropout that does nothing.
        scale: factor on the term.
    """

    layer: nn.Module
    base: nn.Module
    down: nn.Linear
    up: nn.Linear
    drop: nn.Module
    scale: float

    def unseen(self) -> bool:
        """Whether no hook sees what passes between its modules."""
        inner = (self.base, self.down, self.up, self.drop)
        return not any(one._forward_hooks or one._forward_pre_hooks for one in inner)


def adapter_of(layer: nn.Module) -> Adapter | None:
    """What peft's layer would compute now; None for anything else."""
    if (type(layer).__module__, type(layer).__name__) != _PEFT or layer.disable_adapters:
        return None
    names = layer.active_adapters
    if layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    (name,) = names
    down, up = layer.lora_A[name], layer.lora_B[name]
    plain = all(is_plain(one, nn.Linear) and one.bias is None for one in (down, up))
    drop = layer.lora_dropout[name]
    if not plain or name in getattr(layer, "lora_variant", ()) or not isinstance(drop, nn.Identity):
        return None
    return Adapter(layer, layer.base_layer, down, up, drop, float(layer.scaling[name]))


class Adapters:
    """The layers with LoRA of a model in an evaluation.

    Args:
        modules: the model's modules with their weights.
    """

    def __init__(self, modules: ModuleWise) -> None:
        self._modules = modules
        self._layers = [
            layer for layer in modules.model.modules()
            if (type(layer).__module__, type(layer).__name__) == _PEFT
        ]  # fmt: skip
        self._owner = {id(module): (name, own) for name, module, own in modules.owners}
        self._pair: Pairing | None = None
        self._signs: Sequence[float] = ()

    def bytes(self, done: frozenset[int]) -> tuple[int, int]:
        """Bytes held over an evaluation, for adapters all of whose parameters are among those
        perturbed when it begins, and bytes of one of the others while it is in use."""
        held = alone = 0
        for term in self._terms():
            down, up = term.infos
            if takes_thin(down.param.shape[0]):
                size = 8 * up.numel
                if done >= term.pids:
                    held += size
                else:
                    alone = max(alone, size + 8 * (down.numel + up.numel))
        return held, alone

    @contextmanager
    def evaluating(
        self, ready: Mapping[int, Both], pair: Pairing, signs: Sequence[float]
    ) -> Iterator[None]:
        """While active, the layers add their terms at once.

        Args:
            ready: by id, both perturbed copies of parameters that are at hand.
            pair: makes those of the others.
            signs: one for the whole batch, or one for each half of the rows.
        """
        self._pair, self._signs = pair, signs
        terms = [term for term in self._terms() if "forward" not in term.adapter.layer.__dict__]
        self._prepare([term for term in terms if ready.keys() >= term.pids], ready)
        try:
            for term in terms:
                term.adapter.layer.forward = self._wrap(term, term.adapter.layer.forward)
            yield
        finally:
            for term in terms:
                term.adapter.layer.__dict__.pop("forward", None)

    def _terms(self) -> list[_Term]:
        """Adapters in force, both of whose matrices are trained along elementwise noise."""
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return []
        found, kind_of = [], self._modules.engine.source.kind_of
        for adapter in filter(None, map(adapter_of, self._layers)):
            both = [self._owner.get(id(one)) for one in (adapter.down, adapter.up)]
            if None not in both:
                term = _Term(adapter, both[0][0], (both[0][1][0], both[1][1][0]))
                if all(kind_of(pid) is not None for pid in term.pids):
                    found.append(term)
        return found

    def _prepare(self, terms: Sequence[_Term], made: Mapping[int, Both]) -> None:
        """What some adapters add to each part of the rows, where the kernels are for them."""
        pairs = [[made[info.pid] for info in term.infos] for term in terms]
        taken = [(t, p) for t, p in zip(terms, pairs, strict=True) if _takes(p)]
        sides = [0 if sign > 0 else 1 for sign in self._signs]
        ups = [up[side] for _, (_, up) in taken for side in sides]
        turned = iter(by_columns(ups) if ups else ())
        for term, (down, _) in taken:
            scale = [term.adapter.scale]
            term.parts = [Thin(next(turned), down[side].T, scale) for side in sides]

    def _wrap(self, term: _Term, forward: Callable[..., Any]) -> Callable[..., Any]:
        modules, adapter = self._modules, term.adapter

        def run(*args: Any, **kwargs: Any) -> Any:
            x = args[0] if len(args) == 1 and not kwargs and adapter.unseen() else None
            fits = isinstance(x, Tensor) and _fits(x, len(self._signs))
            if not fits or not modules.is_free(term.name, adapter.down, x, term.pids):
                return forward(*args, **kwargs)
            now = term
            if not now.parts:  # for this call alone
                now = replace(term)
                self._prepare([now], {info.pid: self._pair(info) for info in term.infos})
            out = now.of(x) if now.parts else None
            if out is None:
                return forward(*args, **kwargs)
            modules.entered.update(term.pids)
            return out

        return run


@dataclass
class _Term:
    """An adapter in an evaluation.

    Attributes:
        adapter: which.
        name: of the module of A.
        infos: A and B.
        parts: what it adds to each part of the rows, once it is made.
    """

    adapter: Adapter
    name: str
    infos: tuple[ParamInfo, ParamInfo]
    parts: list[Thin] = field(default_factory=list)

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(info.pid for info in self.infos)

    def of(self, x: Tensor) -> Tensor | None:
        """The layer's output, None where the kernels are not made for it."""
        parts = len(self.parts)
        if not self.parts[0].takes(x):
            return None
        out = self.adapter.base(x)
        each = zip(self.parts, out.chunk(parts), x.chunk(parts), strict=True)
        return out if all([thin.add_(to, rows) for thin, to, rows in each]) else None


def _fits(x: Tensor, parts: int) -> bool:
    """Whether an input can be cut into its parts, in the one dtype that there are kernels for."""
    plain = x.dtype is torch.float32 and x.is_cpu and not torch.is_autocast_enabled("cpu")
    return plain and x.dim() > 1 and x.shape[0] % parts == 0


def _takes(pairs: Sequence[Both]) -> bool:
    """Whether the kernels are for perturbed A and B."""
    fits = all(w.dtype is torch.float32 and w.is_cpu for pair in pairs for w in pair)
    return fits and takes_thin(len(pairs[0][0]))
