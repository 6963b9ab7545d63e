"""The noise of published programs: one torch generator over all tensors, in a given order.

For parity with recorded runs. `torch.manual_seed(s)` followed by `torch.normal` per tensor gives
the same numbers here, in each parameter's dtype and on its device. The stream of a CUDA generator
depends on the GPU model, so traces made on one kind of GPU do not repeat on another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.optim.directions import Direction
from zolab.optim.engine import Engine, Update
from zolab.optim.noise import Noise
from zolab.optim.parameters import ParamInfo, canonical_name
from zolab.optim.rules.gradient import chunks, gradient
from zolab.optim.rules.sgd import Sgd


class TorchStream(Noise):
    """Names the noise in headers; no block of it can be made on its own."""

    kind = "reference"
    per_block = 1

    def blocks(self, block: Tensor, seed: int, pid: int | Tensor, stream: int = 0) -> Tensor:
        raise NotImplementedError("a torch generator cannot start in the middle of its stream")


class Reference(Direction):
    """z ~ N(0, I) from one seeded torch generator that runs on from tensor to tensor.

    The z of the present seeds is kept whole (state: one copy of the trained weights per seed of a
    step), because an element cannot be made without all those before it.

    Args:
        order: names of the trained parameters in the order in which they are drawn; None for the
            order in which the optimizer got them.
    """

    def __init__(self, order: Sequence[str] | None = None) -> None:
        self.noise = TorchStream()
        self.kind = None  # faster backends make other noise
        self.order = None if order is None else tuple(order)
        self._infos: list[ParamInfo] = []
        self._store: dict[int, dict[int, Tensor]] = {}
        self._hold = 2

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        """Fix the order; ValueError when it does not list exactly the trained parameters."""
        self._store.clear()
        if self.order is None:
            self._infos = list(infos)
            return
        by_name = {info.name: info for info in infos}
        names = [canonical_name(name) for name in self.order]
        odd = sorted(by_name.keys() ^ set(names))
        if odd or len(names) != len(by_name):
            raise ValueError(f"direction.order does not list the trained parameters: {odd[:4]}")
        self._infos = [by_name[name] for name in names]

    def begin(self, step: int, seeds: Sequence[int]) -> None:
        # Those of this step, and those of the last one while its update may still be on its way.
        self._hold = 2 * max(1, len(seeds))

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        return self._direction(seed)[pid][offset : offset + count]

    def rows(self, pid: int, seed: int, index: Tensor, width: int) -> Tensor:
        return self._direction(seed)[pid].view(-1, width)[index]

    def _direction(self, seed: int) -> dict[int, Tensor]:
        found = self._store.get(seed)
        if found is None:
            while len(self._store) >= self._hold:
                self._store.pop(next(iter(self._store)))
            found = self._store[seed] = self._draw(seed)
        return found

    def _draw(self, seed: int) -> dict[int, Tensor]:
        streams: dict[torch.device, torch.Generator] = {}
        out = {}
        for info in self._infos:
            device = info.data.device
            if device not in streams:
                streams[device] = torch.Generator(device).manual_seed(seed)
            z = torch.normal(
                0.0, 1.0, size=info.data.shape, generator=streams[device],
                dtype=info.data.dtype, device=device,
            )  # fmt: skip
            out[info.pid] = z.view(-1)
        return out


class ReferenceSgd(Sgd):
    """`Sgd` in the operation order of MeZO's program: w - η (c z + λ w), each product rounded.

    Equal to `Sgd` but for rounding: with it, float32 runs of that program repeat bit for bit.
    """

    stateful = True

    def apply_(
        self, engine: Engine, info: ParamInfo, update: Update, mask: Tensor | bool, stochastic: bool
    ) -> None:
        lr, decay = update.lr[info.group], update.weight_decay[info.group]
        for chunk in chunks(info, mask):
            w = chunk.weight
            g = gradient(engine, info, update, chunk).to(w.dtype)
            moved = w - (g + decay * w if decay else g) * lr
            w.copy_(moved if chunk.mask is None else torch.where(chunk.mask, moved, w))
