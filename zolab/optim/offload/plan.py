"""Which block goes where: a pure function of sizes and free memory. No torch.

>>> free = Free(device=8 << 30, host=40 << 30, disk=200 << 30)
>>> plan = plan_tiers([1 << 30] * 48, resident=1 << 30, free=free)
>>> plan.count("device"), plan.count("cpu"), plan.count("disk")
(3, 37, 8)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIERS = ("device", "cpu", "disk")
#: Share of what is free that the plan uses; the rest is for activations, scratch and others.
DEVICE_SHARE, HOST_SHARE, DISK_SHARE = 0.85, 0.95, 0.98
#: A share of the text "cpu*4+disk*28".
_PIECE = re.compile(r"(device|cpu|disk)(?:\*(\d+))?")


class PlanError(ValueError):
    """The weights do not fit; the message holds the figures."""


@dataclass(frozen=True)
class Free:
    """Bytes that a run may take.

    Attributes:
        device: of the device; None where the device is the CPU itself, whose memory is `host`.
        host: of CPU memory.
        disk: of the folder for work files.
    """

    device: int | None
    host: int
    disk: int


@dataclass(frozen=True)
class TierPlan:
    """Where each block goes, and what that takes.

    Attributes:
        tiers: "device", "cpu" or "disk" for each block, in order.
        slots: buffers on the device that blocks pass through.
        needs: bytes by place: "device", "host", "disk".
        free: bytes that were free, by the same names; None where device and host are one.
        blocks: bytes of all blocks together.
        resident: bytes of what is no block and stays on the device.
    """

    tiers: tuple[str, ...]
    slots: int
    needs: dict[str, int]
    free: dict[str, int | None]
    blocks: int
    resident: int

    def count(self, tier: str) -> int:
        """Blocks on a tier."""
        return self.tiers.count(tier)

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{self.count(tier)} on {tier}" for tier in TIERS if self.count(tier)]
        return (
            f"{len(self.tiers)} blocks of {size(self.blocks)} in all: {', '.join(parts)}; "
            f"{size(self.resident)} resident; {self.slots} slots"
        )

    def lines(self) -> list[str]:
        """A few lines for a report: the plan, then need and what is free for each place."""
        out = [str(self)]
        for place, need in self.needs.items():
            free = self.free[place]
            if free is not None:
                out.append(f"{place}: needs {size(need)} of {size(free)} free")
        return out


def plan_tiers(
    blocks: Sequence[int],
    resident: int,
    free: Free,
    *,
    tier: str = "auto",
    slots: int = 3,
    state: float = 0.0,
    staging: int = 0,
    packed: int = 0,
) -> TierPlan:
    """Decide where the blocks go.

    Blocks that stay on the device come first in the model, then those in CPU memory, then those on
    disk. "auto" fills the device (not where it is the CPU), then CPU memory, then the disk.

    Args:
        blocks: bytes of each block, in order.
        resident: bytes of everything else; always on the device.
        free: bytes free before any of it is loaded.
        tier: "auto"; "cpu" or "disk" for all blocks; or numbers of blocks in the order of the
            tiers, such as "device*2+cpu*10+disk*20", where one may stand without a number and
            takes the rest.
        slots: buffers on the device, as large as the largest block each.
        state: bytes of optimizer state for each byte of weights; it lies beside the block.
        staging: bytes of CPU memory beside each slot, if any block is on disk.
        packed: bytes beside each slot, on both sides, for blocks that travel in fewer bytes.

    Raises:
        PlanError: a tier is too small, with need and free bytes; or `tier` cannot be read.
    """
    fixed = None if tier == "auto" else _read(tier, len(blocks))
    count = functools.partial(
        _needs, blocks, resident=resident, free=free, slots=slots, state=state, staging=staging,
        packed=packed,
    )  # fmt: skip
    chosen = list(fixed) if fixed else _fill(len(blocks), free, count)
    needs = count(chosen)
    had = {"device": free.device, "host": free.host, "disk": free.disk}
    plan = TierPlan(tuple(chosen), slots, needs, had, sum(blocks), resident)
    shares = {"device": DEVICE_SHARE, "host": HOST_SHARE, "disk": DISK_SHARE}
    for place, need in needs.items():
        have = had[place]
        if have is not None and need > have * shares[place]:
            raise PlanError(
                f"placement.tier = {tier}: {_WORDS[place]} is too small: {size(need)} needed, "
                f"{size(have)} free ({plan})"
            )
    return plan


_WORDS = {"device": "device memory", "host": "CPU memory", "disk": "the disk of placement.folder"}


def _fill(total: int, free: Free, count: Callable[[Sequence[str]], dict[str, int]]) -> list[str]:
    """Fastest tier first, as long as there is room."""
    if free.device is not None:
        everything = ["device"] * total  # which needs no slots
        if count(everything)["device"] <= free.device * DEVICE_SHARE:
            return everything
    chosen = ["disk"] * total
    rooms = [] if free.device is None else [("device", "device", free.device * DEVICE_SHARE)]
    rooms.append(("cpu", "host", free.host * HOST_SHARE))
    for tier, place, room in rooms:
        for number in (i for i, at in enumerate(chosen) if at == "disk"):
            trial = [*chosen]
            trial[number] = tier
            if count(trial)[place] > room:
                break
            chosen = trial
    return chosen


def _needs(
    blocks: Sequence[int],
    chosen: Sequence[str],
    *,
    resident: int,
    free: Free,
    slots: int,
    state: float,
    staging: int,
    packed: int,
) -> dict[str, int]:
    """Bytes that a choice takes in each place."""
    held = {tier: 0 for tier in TIERS}
    for size_of, tier in zip(blocks, chosen, strict=True):
        held[tier] += size_of
    largest = max(blocks, default=0)
    device = held["device"] + resident
    device += int(state * device)
    host = held["cpu"] + int(state * held["cpu"])
    if held["cpu"] or held["disk"]:
        device += slots * (largest + packed)
        host += slots * (packed + (staging if held["disk"] else 0))
    if free.device is None:
        host += device
    # A block on disk is written anew before the old file of it goes.
    disk = held["disk"] + (largest if held["disk"] else 0)
    return {"device": 0 if free.device is None else device, "host": host, "disk": disk}


def _read(tier: str, total: int) -> list[str]:
    """The tiers that a text names."""
    pieces = [_PIECE.fullmatch(piece.strip()) for piece in tier.split("+")]
    if any(piece is None for piece in pieces):
        raise PlanError(
            f"placement.tier = {tier!r}: expected auto, cpu, disk, or numbers of blocks such as "
            "'cpu*4+disk'"
        )
    counts = [(p[1], None if p[2] is None else int(p[2])) for p in pieces if p is not None]
    given = sum(n for _, n in counts if n is not None)
    open_ends = sum(n is None for _, n in counts)
    if open_ends > 1 or given > total or (not open_ends and given != total):
        raise PlanError(
            f"placement.tier = {tier!r}: the numbers make {given} blocks, the model has {total}; "
            "one tier may stand without a number and takes the rest"
        )
    out: list[str] = []
    for name, n in counts:
        out += [name] * (total - given if n is None else n)
    return out


def size(num_bytes: float) -> str:
    """Bytes for people: 3.2 GB, 14.0 MB, 512 B."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{int(num_bytes)} B"
