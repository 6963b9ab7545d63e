"""Blocks through slots: fetched ahead, computed with, sent back; one slot a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from zolab.optim.engine import Update
from zolab.optim.offload.blocks import ALIGN, Block, Layout, host_bytes
from zolab.optim.offload.stores import HostStore, MappedStore
from zolab.optim.offload.streams import COMPUTE, DOWNLOAD, UPLOAD, Streams
from zolab.optim.offload.transfer import Codec


@dataclass(eq=False)
class Slot:
    """A buffer on the device that holds one block at a time.

    Attributes:
        number: names it among the slots.
        flat: uint8, on the device.
        staging: uint8 in CPU memory, for blocks that are not in CPU memory themselves.
        packed: uint8 on both sides, for blocks that travel in fewer bytes.
        ready: mark after its upload.
        free: mark after the last use of what it held.
        seat: the block in it, if any.
    """

    number: int
    flat: Tensor
    staging: Tensor | None = None
    packed: tuple[Tensor, Tensor] | None = None
    ready: Any = None
    free: Any = None
    seat: Seat | None = None


@dataclass(eq=False)
class Seat:
    """One block as the pipeline sees it.

    Attributes:
        number: position among the blocks.
        pending: updates that its stored weights have not seen, oldest first.
        slot: where it is, if it is on the device or on its way there.
        here: True between arrival and departure.
        changed: True if `pending` has been applied to what the slot holds.
        stored: mark after the last download into its store.
        sent: mark after the last upload out of its store.
    """

    number: int
    block: Block
    layout: Layout
    store: HostStore | MappedStore
    codec: Codec | None = None
    pending: list[Update] = field(default_factory=list)
    slot: Slot | None = None
    here: bool = False
    changed: bool = False
    stored: Any = None
    sent: Any = None
    _views: dict[int, list[Tensor]] = field(default_factory=dict)

    def views(self, slot: Slot) -> list[Tensor]:
        """The parameters within a slot."""
        if slot.number not in self._views:
            with torch.inference_mode(False):
                self._views[slot.number] = self.layout.views(slot.flat)
        return self._views[slot.number]


class Owner(Protocol):
    """What the pipeline asks of whoever knows the parameters."""

    def apply(self, seat: Seat, weights: Sequence[Tensor], updates: Sequence[Update]) -> None:
        """Apply updates, in order, to the weights of a block."""

    def decide(self, seat: Seat, weights: Sequence[Tensor]) -> None:
        """The block travels rounded: decide now what only its exact weights can tell."""

    def moved(self, seat: Seat) -> None:
        """The stored weights of a block are at another place than before."""


class Pipeline:
    """Brings blocks to the device ahead of their use and takes them away after it.

    Args:
        seats: the blocks that come and go, in the order of the model.
        num_slots: buffers on the device, at least 2.
        device: where the slots are.
        streams: lanes for upload, compute and download.
        owner: applies updates.
        on_host: updates are applied to the stored weights, before the upload, and nothing comes
            back; else to what has arrived, and stored when the block leaves.

    Attributes:
        uploaded, downloaded: bytes moved so far.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        num_slots: int,
        device: torch.device,
        streams: Streams,
        owner: Owner,
        on_host: bool,
    ) -> None:
        self.seats, self.streams, self.owner, self.on_host = list(seats), streams, owner, on_host
        self.uploaded = self.downloaded = 0
        size = max(seat.layout.size for seat in self.seats)
        cuda = device.type == "cuda"
        mapped = any(isinstance(seat.store, MappedStore) for seat in self.seats)
        packed = max((seat.codec.size for seat in self.seats if seat.codec), default=0)
        self.slots = []
        for number in range(num_slots):
            raw = torch.empty(size + ALIGN, dtype=torch.uint8, device=device)
            slot = Slot(number, raw[-raw.data_ptr() % ALIGN :][:size])
            if mapped and (cuda or on_host):
                slot.staging = host_bytes(size, pinned=cuda)
            if packed:
                there = torch.empty(packed, dtype=torch.uint8, device=device)
                slot.packed = (host_bytes(packed, pinned=cuda), there)
            self.slots.append(slot)
        self._order = list(range(len(self.seats)))
        self._seen: list[int] = []

    # -- a forward -------------------------------------------------------------------------------

    def begin(self) -> None:
        """A forward pass begins: nothing fetched earlier is trusted, the first blocks come."""
        for seat in self.seats:
            if seat.here:
                self.leave(seat)
            self._vacate(seat)
        if self._seen:
            self._order, self._seen = self._seen, []
        self._fetch_ahead(-1)

    def arrive(self, seat: Seat) -> list[Tensor]:
        """The block's weights on the device, up to date."""
        seat.store.check()
        slot = seat.slot or self._fetch(seat)
        self.streams.wait(COMPUTE, slot.ready)
        views = seat.views(slot)
        if seat.codec is not None:
            _, there = slot.packed
            self.streams.run(
                COMPUTE, lambda: seat.codec.decode(there, views),
                reads=[("packed", slot.number)], writes=[("slot", slot.number)],
            )  # fmt: skip
        seat.here = True
        self._seen.append(seat.number)
        if seat.pending and not self.on_host:
            self.streams.run(
                COMPUTE, lambda: self.owner.apply(seat, views, seat.pending),
                writes=[("slot", slot.number)],
            )  # fmt: skip
            seat.changed = True
        self.streams.run(COMPUTE, _nothing, reads=[("slot", slot.number)])
        return views

    def leave(self, seat: Seat, store: bool = False) -> None:
        """The block was computed with: store what changed if it is due (or `store`), let it go."""
        slot = seat.slot
        if slot is None or not seat.here:
            return
        slot.free = self.streams.mark(COMPUTE)
        if seat.changed and (store or seat.store.due(len(seat.pending))):
            self._store(seat, slot)
            seat.pending.clear()
        seat.here = seat.changed = False
        self._vacate(seat)
        self._fetch_ahead(len(self._seen) - 1)

    def settle(self) -> None:
        """Bring every block's stored weights up to date, and wait until they are."""
        todo = [seat for seat in self.seats if seat.pending]
        for seat in self.seats:
            self._vacate(seat)
        if self.on_host:
            for seat in todo:
                self._settle_on_host(seat, store=True)
        elif todo:
            usual = self._order, self._seen
            self._order, self._seen = [seat.number for seat in todo], []
            self._fetch_ahead(-1)
            for seat in todo:
                self.arrive(seat)
                self.leave(seat, store=True)
            self._order, self._seen = usual
        for seat in self.seats:
            self.streams.sync(seat.stored)

    def drop(self) -> None:
        """Forget what waits and what is on its way: the stored weights are, or will be, others."""
        for seat in self.seats:
            seat.pending.clear()
            seat.here = seat.changed = False
            self._vacate(seat)
            self.streams.sync(seat.sent)
            self.streams.sync(seat.stored)

    # -- fetching --------------------------------------------------------------------------------

    def _fetch_ahead(self, position: int) -> None:
        """Fill the empty slots with the blocks that come next, by the order of the last pass."""
        order = self._order
        if position >= 0:
            now = self._seen[position]
            if position >= len(order) or order[position] != now:  # this pass goes another way
                position = order.index(now) if now in order else len(order)
        coming = [self.seats[number] for number in order[position + 1 :]]
        for seat in coming[: len(self.slots)]:
            if all(slot.seat is not None for slot in self.slots):
                return
            if seat.slot is None:
                self._fetch(seat)
        for seat in coming[len(self.slots) : 2 * len(self.slots)]:
            seat.store.read_ahead()

    def _fetch(self, seat: Seat) -> Slot:
        """Start to bring a block into a slot."""
        streams, slot = self.streams, self._empty_slot()
        seat.store.check()
        slot.seat, seat.slot = seat, slot
        streams.wait(UPLOAD, slot.free)
        streams.wait(UPLOAD, seat.stored)
        source, name = self._source(seat, slot)
        if isinstance(source, list):  # from a mapped file straight into the slot
            views = seat.views(slot)
            streams.run(
                UPLOAD, lambda: _copy_all(views, source),
                reads=[name], writes=[("slot", slot.number)],
            )  # fmt: skip
            self.uploaded += seat.layout.size
        else:
            into = slot.flat if seat.codec is None else slot.packed[1]
            written = "slot" if seat.codec is None else "packed"
            streams.run(
                UPLOAD, lambda: into[: len(source)].copy_(source, non_blocking=True),
                reads=[name], writes=[(written, slot.number)],
            )  # fmt: skip
            self.uploaded += len(source)
        slot.ready = seat.sent = streams.mark(UPLOAD)
        return slot

    def _source(self, seat: Seat, slot: Slot) -> tuple[Tensor | list[Tensor], tuple[str, int]]:
        """What to upload, with the name of its buffer; made ready on the host if it has to be."""
        master = seat.store.views
        if self.on_host and seat.pending:
            master = self._settle_on_host(seat, slot)
        elif isinstance(seat.store, MappedStore) and slot.staging is not None:
            master = self._stage(seat, slot)
        if seat.codec is not None:
            here, _ = slot.packed
            self.owner.decide(seat, master)
            self.streams.sync(slot.ready)  # the last upload out of this buffer
            seat.codec.encode(master, here)
            return here[: seat.codec.size], ("packed on host", slot.number)
        if isinstance(seat.store, HostStore):
            return seat.store.flat, ("host", seat.number)
        if slot.staging is not None:
            return slot.staging[: seat.layout.size], ("staging", slot.number)
        return master, ("host", seat.number)

    def _stage(self, seat: Seat, slot: Slot) -> list[Tensor]:
        """A mapped block, copied into the slot's buffer in CPU memory."""
        self.streams.sync(slot.ready)  # the last upload out of this buffer
        staged = seat.layout.views(slot.staging)
        _copy_all(staged, seat.store.views)
        return staged

    def _settle_on_host(
        self, seat: Seat, slot: Slot | None = None, store: bool = False
    ) -> list[Tensor]:
        """Apply what waits to the master in CPU memory, or to a copy of a mapped one."""
        self.streams.sync(seat.sent)
        if isinstance(seat.store, HostStore):
            self.owner.apply(seat, seat.store.views, seat.pending)
            seat.pending.clear()
            return seat.store.views
        slot = slot or self._empty_slot()
        staged = self._stage(seat, slot)
        self.owner.apply(seat, staged, seat.pending)
        if store or seat.store.due(len(seat.pending)):
            seat.store.take(slot.staging)
            seat.pending.clear()
            self.owner.moved(seat)
        return staged

    # -- storing ---------------------------------------------------------------------------------

    def _store(self, seat: Seat, slot: Slot) -> None:
        """Put what the slot holds into the block's store."""
        streams, store = self.streams, seat.store
        size = seat.layout.trained_size
        streams.wait(DOWNLOAD, slot.free)
        if isinstance(store, HostStore):
            streams.run(
                DOWNLOAD, lambda: store.flat[:size].copy_(slot.flat[:size], non_blocking=True),
                reads=[("slot", slot.number)], writes=[("host", seat.number)],
            )  # fmt: skip
            slot.free = seat.stored = streams.mark(DOWNLOAD)
            self.downloaded += size
            return
        source, size = slot.flat[: seat.layout.size], seat.layout.size
        if slot.staging is not None:
            source = slot.staging[:size]
            streams.run(
                DOWNLOAD, lambda: source.copy_(slot.flat[:size], non_blocking=True),
                reads=[("slot", slot.number)], writes=[("staging", slot.number)],
            )  # fmt: skip
            slot.free = streams.mark(DOWNLOAD)
            streams.sync(slot.free)
        store.take(source)
        self.downloaded += size
        self.owner.moved(seat)

    # -- slots -----------------------------------------------------------------------------------

    def _empty_slot(self) -> Slot:
        """A slot without a block; one that was fetched in vain if there is no other."""
        slot = next((slot for slot in self.slots if slot.seat is None), None)
        if slot is None:
            slot = next(slot for slot in self.slots if not slot.seat.here)
            self._vacate(slot.seat)
        return slot

    def _vacate(self, seat: Seat) -> None:
        if seat.slot is not None:
            seat.slot.seat = seat.slot = None


def _copy_all(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    for a, b in zip(into, source, strict=True):
        a.copy_(b)


def _nothing() -> None:
    """Stands for the block's own kernels, which read the slot until the next mark."""
