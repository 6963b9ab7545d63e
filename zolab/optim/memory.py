"""What a method holds in memory, added up from what its parts declare, before anything runs.

A step alternates between two phases. While a loss is evaluated there are activations; while weights
are swept and updated there are none. So a part declares what it keeps (`state_bytes`), and what it
needs for a moment in one phase or the other; `zolab bench memory` compares the sum with the
allocator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zolab.optim import fast
from zolab.optim.engine import Engine, half_precision
from zolab.optim.parameters import ParamInfo

if TYPE_CHECKING:
    from zolab.optim.zero_order import ZeroOrder

#: Scratch of plain torch while it makes one chunk of noise, of a random mask, or rounds one chunk
#: stochastically (this one per element): Philox's int64 lanes and what is made of them.
NOISE_BYTES = 13 << 19
ROUNDING_BYTES = 22


@dataclass(frozen=True)
class Memory:
    """Bytes that a method takes beside the weights and the activations of one forward.

    Attributes:
        state: held from step to step.
        copies: forwards whose activations are alive at once; 2 where both signs pass together.
        probing: scratch while activations are alive.
        between: scratch while none are.
    """

    state: int
    copies: float
    probing: int
    between: int

    def scratch(self, activations: int) -> int:
        """Scratch on top of a forward whose activations take so many bytes at their highest."""
        return max(int(self.copies * activations) + self.probing, self.between) - activations


def memory_of(optimizer: ZeroOrder) -> Memory:
    """The memory of an optimizer as composed, on the device and backend it will run on."""
    engine, rule, placement = optimizer.engine, optimizer.rule, optimizer.placement
    infos = engine.infos
    state = engine.source.state_bytes()
    state += sum(rule.state_bytes(engine.direction, info) for info in infos)
    held = 0
    if placement.holds_masks or engine.mask.static:
        held = sum(engine.mask_bytes(info) for info in infos)
    between = [update_bytes(engine, rule, placement.rounds, info) for info in infos]
    between += [engine.mask.setup_bytes(info) - held for info in infos]  # none are held then
    scales: dict[int, tuple[float, ...]] = {}
    for point in optimizer.estimator.plan(1):
        scales[point.probe] = (*scales.get(point.probe, ()), point.scale)
    at_losses = placement.memory((1.0, -1.0) in scales.values())
    return replace(at_losses, state=state + held, between=max(*between, at_losses.between))


def update_bytes(engine: Engine, rule: object, rounds: bool, info: ParamInfo) -> int:
    """Scratch while one parameter is swept and updated."""
    size = min(info.numel, engine.source.chunk(info.pid))
    out = engine.direction.scratch_bytes(info)
    swept = not rule.alone and fast.handles(
        engine.source.kind_of(info.pid), info.data, rule.stateful
    )
    if not swept or not decided_on_the_way(engine, info):
        out += spread_bytes(engine, info)
    fused = engine.source.sweeps(info) and not rule.stateful
    if swept or fused:
        return out
    out += 4 * size * (2 + rule.buffers) + noise_bytes(engine, info)
    return out + (ROUNDING_BYTES * size if rounds and half_precision(info.data) else 0)


def spread_bytes(engine: Engine, info: ParamInfo) -> int:
    """A mask of one parameter as bytes, with its bits beside it while it is renewed."""
    if not engine.mask.covers(info):
        return 0
    return info.numel + engine.mask_bytes(info) + engine.mask.making_bytes(info)


def decided_on_the_way(engine: Engine, info: ParamInfo) -> bool:
    """Whether the kernels decide a parameter's mask themselves, tile by tile."""
    follows = engine.mask.limit(info) is not None
    return follows and fast.handles(engine.source.kind_of(info.pid), info.data)


def noise_bytes(engine: Engine, info: ParamInfo) -> int:
    """What making one chunk of z takes besides z."""
    return 0 if fast.handles("gauss", info.data) else NOISE_BYTES


def pair_bytes(engine: Engine, infos: Iterable[ParamInfo], at_most: int | None) -> tuple[int, int]:
    """Both perturbed copies of a module's parameters: once made, and while they are being made.

    Args:
        engine: noise and masks.
        infos: the module's trained parameters.
        at_most: elements of a parameter perturbed at once; None for all.
    """
    copies = making = 0
    for info in infos:
        piece = min(info.numel, at_most or info.numel)
        copies += 2 * piece * info.param.element_size()
        extra = engine.direction.scratch_bytes(info)
        if not fast.handles(engine.source.kind_of(info.pid), info.data):
            extra += 8 * min(piece, engine.source.chunk(info.pid)) + noise_bytes(engine, info)
        if engine.mask.covers(info) and not decided_on_the_way(engine, info):
            extra = info.numel + max(extra, engine.mask.making_bytes(info))
        making = max(making, extra)
    return copies, copies + making


def whole(parts: Iterable[Memory]) -> Memory:
    """Several optimizers that take turns on the same model."""
    parts = list(parts)
    largest = (max(getattr(part, name) for part in parts) for name in ("copies", "probing"))
    return Memory(sum(part.state for part in parts), *largest, max(p.between for p in parts))


def more(memory: Memory, **added: int) -> Memory:
    """A memory with something added to it."""
    return replace(memory, **{name: getattr(memory, name) + size for name, size in added.items()})
