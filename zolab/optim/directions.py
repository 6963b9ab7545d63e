"""Directions z a probe may take, as configs name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim import fast
from zolab.optim.backend import CHUNK, Term
from zolab.optim.noise import make_noise
from zolab.optim.parameters import ParamInfo

if TYPE_CHECKING:
    from zolab.optim.masks import Dense


class Direction:
    """A direction z over all trained parameters, a function of (seed, parameter id, element).

    Attributes:
        noise: the elementwise noise behind it.
        kind: its name when z is that noise itself, so that faster backends may make it; None when
            z is something else, such as a product of factors.
    """

    def __init__(self, noise: str) -> None:
        self.noise = make_noise(noise)
        self.kind: str | None = noise

    def kind_of(self, pid: int) -> str | None:
        """The same for one parameter."""
        return self.kind

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        """Elements `offset` to `offset + count` of one parameter's z: float32 (count,)."""
        out = torch.empty(count, dtype=torch.float32, device=device)
        self.noise.fill(out, seed, pid, offset)
        return out

    def stored(
        self, pid: int, seed: int, offset: int, count: int, device: torch.device
    ) -> Tensor | None:
        """Nothing is kept: z is made when it is needed."""
        return None

    def check(self, mask: Dense) -> None:
        """Refuse a mask that the direction cannot go with; ValueError with the reason."""

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        """Called once, with the trained parameters."""

    def due(self, step: int) -> bool:
        """Whether a step needs clean weights before `begin`, for what was kept to be dropped."""
        return False

    def begin(self, step: int, seeds: Sequence[int]) -> None:
        """A step begins whose probes have these seeds."""

    def prepare(self, seed: int, device: torch.device) -> None:
        """Make what all parameters need of a seed at once, where that is faster, and keep it until
        the next step or the next call."""

    def prepared_bytes(self) -> int:
        """Bytes that `prepare` keeps."""
        return 0

    def state_bytes(self) -> int:
        """Bytes kept from step to step, once set up."""
        return 0

    def scratch_bytes(self, info: ParamInfo) -> int:
        """Bytes taken for a moment to make the z of a parameter, beside the chunk asked for."""
        return 0

    def factor_bytes(self, info: ParamInfo) -> int | None:
        """Bytes of `factors` while they are in use; None where a matrix has none of its shape."""
        return None

    def gain(self, pid: int) -> float:
        """Factor on the estimate of one parameter: its gradient estimate is gain * c * z."""
        return 1.0

    def chunk(self, pid: int) -> int:
        """Elements of one parameter's z best made at once in a sweep."""
        return CHUNK

    def sweep(self, weight: Tensor, pid: int, terms: Sequence[Term]) -> bool:
        """Apply terms to a whole parameter, in place, where there is a way of its own to do so.

        Returns:
            Whether there is one; nothing has been done where there is not.
        """
        return False

    def sweep_all(self, moves: Sequence[tuple[Sequence[Term], Sequence[ParamInfo]]]) -> bool:
        """Apply terms to all parameters of an update at once, without masks, where that is faster.

        Args:
            moves: terms, and the parameters that get them.

        Returns:
            Whether it has been done; if not, nothing has.
        """
        return False

    def sweeps(self, info: ParamInfo) -> bool:
        """Whether `sweep` takes no scratch but what `scratch_bytes` says."""
        return False

    def factors(self, pid: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """left (m, r) and right (n, r), float32, with z = left @ rightᵀ; None for no such thing."""
        return None

    def rows(self, pid: int, seed: int, index: Tensor, width: int) -> Tensor:
        """Rows `index` (int64) of a (rows, width) parameter's z: float32 (len(index), width)."""
        return self.noise.rows(index, width, seed, pid)


class Gaussian(Direction):
    """z ~ N(0, I), the choice of MeZO (arXiv 2305.17333, Definition 1).

    Args:
        noise: "gauss" (Box-Muller) or "gauss8" (256 levels of a normal, four times cheaper).
    """

    def __init__(self, noise: str = "gauss") -> None:
        if noise not in ("gauss", "gauss8"):
            raise ValueError(f"direction.noise = {noise!r}: expected gauss or gauss8")
        super().__init__(noise)


class Rademacher(Direction):
    """z with independent entries +1 and -1: one random bit an element.

    Args:
        noise: "rademacher", the only way there is.
    """

    def __init__(self, noise: str = "rademacher") -> None:
        if noise != "rademacher":
            raise ValueError(f"direction.noise = {noise!r}: expected rademacher")
        super().__init__(noise)


class Kept:
    """A direction that remembers z of its last seeds: for models so small that z fits in cache.

    The values are those of the direction, bit for bit; only the time to make them again is saved.
    All parameters are made in one go, which matters when there are many tiny ones.

    Args:
        direction: what to remember.
        sizes: elements of each trained parameter by id.
        seeds: how many seeds to remember; the fused sweep of `InPlace` needs two.
    """

    def __init__(self, direction: Direction, sizes: dict[int, int], seeds: int = 2) -> None:
        self.direction = direction
        self.kind = direction.kind
        self._sizes = sizes
        self._seeds = seeds
        self._store: dict[int, dict[int, Tensor]] = {}
        self._plan: tuple[Tensor, Tensor] | None = None

    def kind_of(self, pid: int) -> str | None:
        return self.direction.kind_of(pid)

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        return self._direction(seed, device)[pid][offset : offset + count]

    stored = z

    def whole(self, seed: int, device: torch.device) -> dict[int, Tensor]:
        """z of every parameter, by id: float32, flat; read only."""
        return self._direction(seed, device)

    def state_bytes(self) -> int:
        """z of the seeds remembered, and the plan by which plain torch makes it."""
        kept = 4 * self._seeds * sum(self._sizes.values())
        planned = 0
        if self.kind is not None and not fast.makes(self.kind, torch.device("cpu")):
            planned = 16 * sum(self._sizes.values()) // self.direction.noise.per_block
        return kept + planned + self.direction.state_bytes()

    def chunk(self, pid: int) -> int:
        return CHUNK

    def sweep(self, weight: Tensor, pid: int, terms: Sequence[Term]) -> bool:
        return False  # z is there

    def sweeps(self, info: ParamInfo) -> bool:
        return False

    def rows(self, pid: int, seed: int, index: Tensor, width: int) -> Tensor:
        return self._direction(seed, index.device)[pid].view(-1, width)[index]

    def _direction(self, seed: int, device: torch.device) -> dict[int, Tensor]:
        found = self._store.get(seed)
        if found is None:
            if len(self._store) >= self._seeds:
                self._store.pop(next(iter(self._store)))
            found = self._store[seed] = self._draw(seed, device)
        return found

    def _draw(self, seed: int, device: torch.device) -> dict[int, Tensor]:
        noise = self.direction.noise
        if self.kind is None or fast.makes(self.kind, device):
            return {
                pid: self.direction.z(pid, seed, 0, size, device)
                for pid, size in self._sizes.items()
            }
        per = noise.per_block
        if self._plan is None:
            blocks = {pid: (size - 1) // per + 1 for pid, size in self._sizes.items()}
            self._plan = (
                torch.cat([torch.arange(n, device=device) for n in blocks.values()]),
                torch.cat([torch.full((n,), pid, device=device) for pid, n in blocks.items()]),
            )
        block, pids = self._plan
        flat = torch.empty(len(block), per, dtype=torch.float32, device=device)
        for i in range(0, len(block), 1 << 16):
            part = slice(i, i + (1 << 16))
            flat[part] = noise.blocks(block[part], seed, pids[part])
        out, start = {}, 0
        for pid, size in self._sizes.items():
            rows = (size - 1) // per + 1
            out[pid] = flat[start : start + rows].view(-1)[:size]
            start += rows
        return out
