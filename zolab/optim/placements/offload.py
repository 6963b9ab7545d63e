"""Paired evaluation of a model that does not fit: its blocks come and go while it computes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zolab.optim.engine import Engine, Update, half_precision
from zolab.optim.masks import Dense
from zolab.optim.offload.blocks import Block, Layout, find_blocks, resident_bytes
from zolab.optim.offload.memory import free_memory
from zolab.optim.offload.pipeline import Pipeline, Seat
from zolab.optim.offload.plan import TierPlan, plan_tiers
from zolab.optim.offload.stores import HostStore, MappedStore, backing_files
from zolab.optim.offload.streams import Streams, streams_for
from zolab.optim.offload.transfer import Codec, TransferError, check_form
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements.base import Closure, Probe, apply_to
from zolab.optim.placements.paired import Paired
from zolab.optim.rules import Rule


class Offload(Paired):
    """`Paired`, with the model's layers in CPU memory or on disk and on the device only in turn.

    Both signs pass a layer together, so it is uploaded once a forward pass; the update of the last
    step is applied when it arrives (ZO2, arXiv 2503.12668, section 4). Embeddings, final norm and
    head stay on the device. Hooks of the layers do the work, so evaluation and generation stream
    as well. Losses, coefficients and weights are those of `Paired`, bit for bit, unless `transfer`
    rounds what the device sees.

    Args:
        tier: "auto" (fill the device, then CPU memory, then the disk), "cpu", "disk", or numbers
            of blocks such as "device*2+cpu*10+disk"; see `plan_tiers`.
        slots: blocks on the device at a time, at least 2.
        write_back_every: updates after which a block on disk is written anew; 0: only when clean
            weights are asked for (`flush`). In between, updates are kept as scalars and applied on
            each arrival.
        upload_only: the host applies updates to its own copy, and nothing is downloaded.
        transfer: "none", or the form in which weights travel: float16, bfloat16, float8, int8. The
            host then keeps the exact weights (upload_only is implied).
        folder: for work files of the disk tier; None: a temporary one.

    Attributes:
        device: where to compute; None: where the model is. Set it before the optimizer is made.
        plan: which block went where.
        transfer_error: what `transfer` does to the weights, measured when the run began.
    """

    name = "offload"
    keeps_weights = False

    def __init__(
        self,
        tier: str = "auto",
        slots: int = 3,
        write_back_every: int = 8,
        upload_only: bool = False,
        transfer: str = "none",
        folder: str | None = None,
    ) -> None:
        if slots < 2:
            raise ValueError(f"placement.slots = {slots}: expected at least 2")
        if write_back_every < 0:
            raise ValueError(f"placement.write_back_every = {write_back_every}: expected 0 or more")
        check_form(transfer, torch.device("cpu"))
        self.tier, self.slots, self.write_back_every = tier, slots, write_back_every
        self.upload_only, self.transfer = upload_only or transfer != "none", transfer
        self.folder = None if folder is None else Path(folder)
        self.device: torch.device | None = None
        self.streams: Streams | None = None
        self.plan: TierPlan | None = None
        self.transfer_error: TransferError | None = None
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._hooks: list[Any] = []

    # -- set up ----------------------------------------------------------------------------------

    def bind(self, engine: Engine, rule: Rule, model: nn.Module | None, seed: int) -> None:
        super().bind(engine, rule, model, seed)
        self.modules.prepares = False  # weights come with their block
        assert model is not None  # see `CleanWeights.bind`
        self.model = model
        self.device = self.device or next(model.parameters()).device
        check_form(self.transfer, self.device)
        # Old updates may wait only where they are functions of their seeds and scalars alone.
        self._several = engine.direction.kind is not None and rule.reach == 1
        # Updates that are plain sweeps without a mask can be one sweep.
        alike = not rule.stateful and not rule.alone and rule.reach == 1
        self._fused = alike and type(engine.mask) is Dense
        self._by_param = {id(info.param): info for info in engine.infos}
        trained = frozenset(self._by_param)
        blocks = find_blocks(model, trained)
        layouts = [Layout(b.params, sum(id(p) in trained for p in b.params)) for b in blocks]
        codecs = [Codec(self.transfer, x) if self.transfer != "none" else None for x in layouts]
        self.plan = self._make_plan(blocks, layouts, codecs, rule)
        with torch.inference_mode(False), torch.no_grad():
            self._settle_in(blocks, layouts, codecs)
        if self.device.type != "cpu" or self.plan.count("disk"):
            # What is kept of z lies on one device, and is of fewer seeds than updates may wait.
            engine.source = engine.direction
        for seat in self.pipeline.seats if self.pipeline else ():
            self._hooks += [
                seat.block.module.register_forward_pre_hook(self._arriving(seat)),
                seat.block.module.register_forward_hook(self._leaving(seat), always_call=True),
            ]
        if self.pipeline:
            self._hooks.append(model.register_forward_pre_hook(self._beginning))

    def _make_plan(
        self,
        blocks: Sequence[Block],
        layouts: Sequence[Layout],
        codecs: Sequence[Codec | None],
        rule: Rule,
    ) -> TierPlan:
        free = free_memory(str(self.device), self._work_folder(make=False))
        weights = list(self.model.parameters())
        in_memory = [
            p.numel() * p.element_size()
            for p, path in zip(weights, backing_files(weights), strict=True)
            if path is None and p.device.type == "cpu"
        ]
        largest = max(layout.size for layout in layouts)
        plan = plan_tiers(
            [layout.size for layout in layouts],
            resident_bytes(self.model, blocks),
            # What the model takes now is handed over, block by block.
            type(free)(free.device, free.host + sum(in_memory), free.disk),
            tier=self.tier,
            slots=self.slots,
            state=rule.per_weight * 4 / self.engine.infos[0].data.element_size(),
            staging=largest if self.upload_only or self.device.type == "cuda" else 0,
            packed=max((codec.size for codec in codecs if codec), default=0),
        )
        if rule.per_weight and plan.count("disk"):
            raise ValueError(
                f"placement.tier: {plan.count('disk')} blocks would be on disk, but the rule "
                f"{type(rule).__name__} keeps {rule.per_weight} numbers a weight in memory; use "
                "tier=cpu, rule.history=replayed or a rule without state"
            )
        return plan

    def _settle_in(
        self,
        blocks: Sequence[Block],
        layouts: Sequence[Layout],
        codecs: Sequence[Codec | None],
    ) -> None:
        """Move every weight to where the plan wants it; one block at a time is held twice."""
        self.resident = list(self.engine.infos)
        seats, sums = [], [0.0, 0.0, 0.0]
        every = self.write_back_every if self._several else 1
        for block, layout, codec, tier in zip(
            blocks, layouts, codecs, self.plan.tiers, strict=True
        ):
            if tier == "device" or not block.params:
                continue
            tensors = [param.data for param in block.params]
            if tier == "cpu":
                store: Any = HostStore(layout, tensors, self.device.type == "cuda")
            else:
                store = MappedStore(block.name, layout, tensors, self._work_folder(), every)
            del tensors
            seat = Seat(len(seats), block, layout, store, codec)
            seats.append(seat)
            self.moved(seat)
            if codec is not None:
                found = codec.error(store.views)
                sums = [sums[0] + found[0], sums[1] + found[1], max(sums[2], found[2])]
            inside = {id(param) for param in block.params}
            self.resident = [info for info in self.resident if id(info.param) not in inside]
        if codecs[0] is not None and seats:
            self.transfer_error = TransferError((sums[0] / (sums[1] or 1.0)) ** 0.5, sums[2])
        away = {id(param) for seat in seats for param in seat.block.params}
        here = [param for param in self.model.parameters() if id(param) not in away]
        for param, path in zip(here, backing_files(here), strict=True):
            # Updates must not reach a file, nor copy its pages behind our back.
            copy = path is not None and id(param) in self._by_param
            param.data = param.data.to(self.device, copy=copy)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)
        self.streams = self.streams or streams_for(self.device)
        self.streams.clock = self.engine.clock
        self.pipeline = None
        if seats:
            self.pipeline = Pipeline(
                seats, self.slots, self.device, self.streams, self, self.upload_only
            )

    def _work_folder(self, make: bool = True) -> Path:
        if self.folder is not None:
            return self.folder
        if not make:
            return Path(tempfile.gettempdir())
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="zolab-offload-")
        return Path(self._temporary.name)

    def unbind(self) -> None:
        self.flush()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # -- hooks -----------------------------------------------------------------------------------

    def _beginning(self, module: nn.Module, args: tuple) -> None:
        self.pipeline.begin()

    def _arriving(self, seat: Seat) -> Any:
        def arriving(module: nn.Module, args: tuple) -> None:
            self._place(seat, self.pipeline.arrive(seat))

        return arriving

    def _leaving(self, seat: Seat) -> Any:
        def leaving(module: nn.Module, args: tuple, out: Any) -> None:
            self.pipeline.leave(seat)
            self.moved(seat)
            for info in self._infos(seat):
                self.engine.release_mask(info)

        return leaving

    def _place(self, seat: Seat, weights: Sequence[Tensor]) -> None:
        """Let the block's parameters be these tensors."""
        for param, weight in zip(seat.block.params, weights, strict=True):
            info = self._by_param.get(id(param))
            if info is None:
                param.data = weight
            else:
                self.modules.place(info, weight)

    def _infos(self, seat: Seat) -> list[ParamInfo]:
        found = (self._by_param.get(id(param)) for param in seat.block.params)
        return [info for info in found if info is not None]

    # -- what the pipeline asks ------------------------------------------------------------------

    def moved(self, seat: Seat) -> None:
        self._place(seat, seat.store.views)

    @torch.no_grad()
    def apply(self, seat: Seat, weights: Sequence[Tensor], updates: Sequence[Update]) -> None:
        for info, weight in zip(self._infos(seat), weights, strict=False):
            before, info.param.data = info.param.data, weight
            self.rule.shift(info.name, weight.device)
            try:
                if self._fused and len(updates) > 1:
                    self._apply_all(info, updates)
                else:
                    for update in updates:
                        self._apply(info, update)
            finally:
                info.param.data = before
                self.rule.shift(info.name, before.device)

    def _apply(self, info: ParamInfo, update: Update) -> None:
        """One update with the mask of its own step, which may be over."""
        engine, now = self.engine, self.engine.step
        engine.step = update.step
        try:
            with engine.clock.updating():
                apply_to(engine, self.rule, info, update)
        finally:
            engine.step = now
            engine.release_mask(info)

    def _apply_all(self, info: ParamInfo, updates: Sequence[Update]) -> None:
        """Several updates in one sweep: its terms round one by one, so the bits are the same."""
        engine, stochastic = self.engine, half_precision(info.data)
        terms = [
            term
            for update in updates
            for term in self.rule.terms(engine.scaled(update, info), info.group, stochastic)
        ]
        with engine.clock.updating():
            engine.sweep(info, terms, True)

    def decide(self, seat: Seat, weights: Sequence[Tensor]) -> None:
        if self.modules.active and not self.engine.mask.structured:
            for info, weight in zip(self._infos(seat), weights, strict=False):
                self.engine.hold_mask(info, weight, self.device)

    # -- steps -----------------------------------------------------------------------------------

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        out = super().losses(probes, eps, closure)
        self._catch_up()
        return out

    def walk(self, probes: Sequence[Probe], eps: Sequence[float]) -> None:
        self._catch_up()

    def _catch_up(self) -> None:
        """Before the next update is known: old ones that cannot wait any longer are applied."""
        if self.pipeline and not self._several:
            self.pipeline.settle()

    @torch.no_grad()
    def update(self, update: Update | None) -> None:
        if update is None:
            return
        for info in self.resident:
            apply_to(self.engine, self.rule, info, update)
        for seat in self.pipeline.seats if self.pipeline else ():
            seat.pending.append(update)

    @torch.no_grad()
    def flush(self) -> None:
        if self.pipeline:
            self.pipeline.settle()

    def forget(self) -> None:
        if self.pipeline:
            self.pipeline.drop()
            for seat in self.pipeline.seats:
                self.moved(seat)

    @torch.no_grad()
    def load_weights(
        self, params: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
    ) -> None:
        self.forget()
        names = {id(param): name for name, param in params.items()}
        away = self.pipeline.seats if self.pipeline else []
        for seat in away:
            mine = [names.pop(id(param), None) for param in seat.block.params]
            if any(mine):
                present = zip(mine, seat.store.views, strict=True)
                seat.store.put([view if name is None else tensors[name] for name, view in present])
                self.moved(seat)
        super().load_weights({name: params[name] for name in names.values()}, tensors)


def block_names(placement: Offload) -> list[str]:
    """Names of the blocks that come and go, in the order of the model."""
    return [seat.block.name for seat in placement.pipeline.seats] if placement.pipeline else []
