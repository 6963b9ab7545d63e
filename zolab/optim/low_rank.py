"""Directions that are products of thin factors: z of a matrix is left @ rightᵀ, of rank r.

Bases are functions of (run seed, period, parameter id), so they are never saved: a period is a run
of steps over which the slow factors stay. Tensors of one dimension get plain Gaussian noise. A
matrix too narrow for the rank (LoRA, prefixes) is factorised in its most nearly square shape.

A product is always made in blocks of `BLOCK` whole rows, so that an element has the same bits
however a sweep cuts the parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zolab.optim.backend import CHUNK
from zolab.optim.directions import Direction
from zolab.optim.keys import probe_seed
from zolab.optim.masks import Dense
from zolab.optim.parameters import ParamInfo

BLOCK = 64
#: Elements of a product made at once in a sweep, at least a block: they stay in a core's cache.
PIECE = 1 << 17
#: Probe numbers of the seeds of bases; those of real directions are small.
_LEFT, _RIGHT = (1 << 32) - 2, (1 << 32) - 3


class LowRank(Direction):
    """Shared by the low-rank directions.

    Args:
        rank: r >= 1; a matrix with a shorter side takes that side.
        refresh_every: steps that the slow factors last.
    """

    def __init__(self, rank: int, refresh_every: int) -> None:
        super().__init__("gauss")
        self.kind = None
        if rank < 1:
            raise ValueError(f"direction.rank = {rank}: expected at least 1")
        if refresh_every < 1:
            raise ValueError(f"direction.refresh_every = {refresh_every}: expected at least 1")
        self.rank = rank
        self.refresh_every = refresh_every
        self.run_seed = 0
        self.shapes: dict[int, tuple[int, int]] = {}
        self._periods: dict[int, int] = {}
        self._last: tuple[int, ...] = ()
        self._bases: dict[tuple[int, int, int], Tensor] = {}

    def check(self, mask: Dense) -> None:
        if mask.sparsity > 0.0 and not mask.structured:
            raise ValueError(
                f"direction {type(self).__name__} with mask {type(mask).__name__}: a low-rank "
                "direction cut to single coordinates is no longer low-rank; use a layer mask or "
                "none, or a direction with independent entries"
            )

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        self.run_seed = run_seed
        self.shapes = {
            info.pid: factor_shape(info.param.shape, self.rank)
            for info in infos
            if not info.is_vector
        }
        self._periods, self._last, self._bases = {}, (), {}

    def due(self, step: int) -> bool:
        return self.period_at(step) not in self._periods.values() and bool(self._periods)

    def begin(self, step: int, seeds: Sequence[int]) -> None:
        # A deferred update still asks for the seeds of the step before; `due` has it applied first.
        before = {s: p for s, p in self._periods.items() if s in self._last and not self.due(step)}
        self._periods = before | dict.fromkeys(seeds, self.period_at(step))
        self._last = tuple(seeds)
        alive = set(self._periods.values())
        self._bases = {k: v for k, v in self._bases.items() if k[1] in alive}

    def state_bytes(self) -> int:
        return sum(4 * self.rank_of(pid) * self.kept_rows(*self.shapes[pid]) for pid in self.shapes)

    def kept_rows(self, m: int, n: int) -> int:
        """Rows of the slow factors of a matrix, together."""
        return n

    def scratch_bytes(self, info: ParamInfo) -> int:
        if info.pid not in self.shapes:
            return 0
        # Whole blocks of rows, of the product and of its left factor, around the chunk asked for.
        n, r = self.shapes[info.pid][1], self.rank_of(info.pid)
        return 4 * min(info.numel, CHUNK + 2 * BLOCK * n) * (n + 2 * r) // n

    def factor_bytes(self, info: ParamInfo) -> int | None:
        if self.shapes.get(info.pid) != tuple(info.param.shape):
            return None
        (m, n), r = self.shapes[info.pid], self.rank_of(info.pid)
        return 4 * (2 * m + n) * (r + 1)  # the left one is also put together with a bias's z

    def period_at(self, step: int) -> int:
        """Period of a step, from 0."""
        return (step - 1) // self.refresh_every

    def rank_of(self, pid: int) -> int:
        """Rank of a matrix's z: `rank`, or its shorter side."""
        return min(self.rank, *self.shapes[pid])

    def chunk(self, pid: int) -> int:
        if pid not in self.shapes:
            return super().chunk(pid)
        block = BLOCK * self.shapes[pid][1]
        return max(1, PIECE // block) * block

    def reader(self, pid: int, seed: int, device: torch.device) -> Callable[[int, int], Tensor]:
        if pid not in self.shapes:
            return super().reader(pid, seed, device)
        left, right = self.factors(pid, seed, device)
        m, n = self.shapes[pid]
        size = min(m, self.chunk(pid) // n + 2 * BLOCK)
        pages = torch.empty(size, n, dtype=torch.float32, device=device)

        def read(offset: int, count: int) -> Tensor:
            return product(lambda a, b: left[a:b], right, m, offset, count, pages)

        return read

    def factors(self, pid: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """left (m, r) and right (n, r), float32, with z = left @ rightᵀ of `shapes[pid]`."""
        if pid not in self.shapes:
            return None
        rows = torch.arange(self.shapes[pid][0], device=device)
        period = self._period(seed)
        return self._left(pid, seed, period, rows), self.right(pid, period, device)

    def right(self, pid: int, period: int, device: torch.device) -> Tensor:
        """The slow factor V of a period: float32 (n, r)."""
        raise NotImplementedError

    def _left(self, pid: int, seed: int, period: int, index: Tensor) -> Tensor:
        """Rows `index` of the left factor: float32 (len(index), r)."""
        raise NotImplementedError

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        if pid not in self.shapes:
            return super().z(pid, seed, offset, count, device)
        period = self._period(seed)

        def left(start: int, stop: int) -> Tensor:
            return self._left(pid, seed, period, torch.arange(start, stop, device=device))

        right = self.right(pid, period, device)
        return product(left, right, self.shapes[pid][0], offset, count)

    def rows(self, pid: int, seed: int, index: Tensor, width: int) -> Tensor:
        if pid not in self.shapes:
            return super().rows(pid, seed, index, width)
        m, n = self.shapes[pid]
        if n != width:
            return self.z(pid, seed, 0, m * n, index.device).view(-1, width)[index]
        period = self._period(seed)
        return self._left(pid, seed, period, index) @ self.right(pid, period, index.device).T

    def _period(self, seed: int) -> int:
        """Period of a probe; a seed of no step (a self-check's) takes the newest."""
        return self._periods.get(seed, max(self._periods.values(), default=0))

    def _basis(
        self, pid: int, period: int, side: int, make: Callable[[int], Tensor], device: torch.device
    ) -> Tensor:
        """A cached basis: `make` gets the seed of this period and side."""
        key = (pid, period, side)
        found = self._bases.get(key)
        if found is None or found.device != device:
            found = make(probe_seed(self.run_seed, period, side)).to(device)
            if period in self._periods.values():  # not those of a period that is over
                self._bases[key] = found
        return found

    def _gauss(self, pid: int, seed: int, rows: int, columns: int, device: torch.device) -> Tensor:
        out = torch.empty(rows * columns, dtype=torch.float32, device=device)
        self.noise.fill(out, seed, pid)
        return out.view(rows, columns)


class Subspace(LowRank):
    """SubZero (arXiv 2410.08989): z = s U Z Vᵀ, U (m, r) and V (n, r) with orthonormal columns.

    U and V come from QR of Gaussian matrices every `refresh_every` steps, Z (r, r) is Gaussian and
    fresh for each probe. QR runs in float64 on the CPU with the signs of R's diagonal made
    positive, so that its result is unique; Z is symmetric, so no distribution changes.
    State: U and V, (m + n) r numbers a matrix.

    Args:
        rank: r; the authors' commands use 48 (24 for prefixes), their code's default is 8.
        refresh_every: steps that U and V last; the authors' commands use 1000.
        scale: s = sqrt(m n) / r as in the authors' code, so that z is as long as a Gaussian and
            lr may be MeZO's; False leaves s = 1, the paper's equation.
    """

    def __init__(self, rank: int = 48, refresh_every: int = 1000, scale: bool = True) -> None:
        super().__init__(rank, refresh_every)
        self.scale = scale

    def kept_rows(self, m: int, n: int) -> int:
        return m + n

    def scratch_bytes(self, info: ParamInfo) -> int:
        out = super().scratch_bytes(info)
        # A basis is made in float64: drawn, as a copy, Q, and what LAPACK works in.
        longest = max(self.shapes.get(info.pid, (0,)))
        return max(out, 32 * longest * self.rank_of(info.pid)) if longest else out

    def right(self, pid: int, period: int, device: torch.device) -> Tensor:
        return self._orthonormal(pid, period, _RIGHT, self.shapes[pid][1], device)

    def left_basis(self, pid: int, period: int, device: torch.device) -> Tensor:
        """U of a period: float32 (m, r), orthonormal columns."""
        return self._orthonormal(pid, period, _LEFT, self.shapes[pid][0], device)

    def _left(self, pid: int, seed: int, period: int, index: Tensor) -> Tensor:
        r = self.rank_of(pid)
        core = self._gauss(pid, seed, r, r, index.device)
        if self.scale:
            core *= math.sqrt(math.prod(self.shapes[pid])) / r
        return self.left_basis(pid, period, index.device)[index] @ core

    def _orthonormal(
        self, pid: int, period: int, side: int, size: int, device: torch.device
    ) -> Tensor:
        def make(seed: int) -> Tensor:
            drawn = self._gauss(pid, seed, size, self.rank_of(pid), torch.device("cpu"))
            q, r = torch.linalg.qr(drawn.double())
            return (q * r.diagonal().sign()).float().contiguous()

        return self._basis(pid, period, side, make, device)


class LazyLowRank(LowRank):
    """LOZO (arXiv 2410.07698): z = U Vᵀ, U (m, r) fresh for each probe, V (n, r) kept for a while.

    The gradient estimate is c U Vᵀ / r. State: V, n r numbers a matrix.

    Args:
        rank: r; the paper takes 1 or 2 for OPT, 4 or 8 for RoBERTa.
        refresh_every: ν, steps that V lasts; the paper takes 50 or 100.
        scale_by_rank: divide the estimate by r, as the paper; its code leaves that out, so its lr
            is r times smaller: set False to use numbers published from it. The code's other slip,
            an update along another direction than the probe's on refresh steps, is not offered.
    """

    def __init__(self, rank: int = 2, refresh_every: int = 50, scale_by_rank: bool = True) -> None:
        super().__init__(rank, refresh_every)
        self.scale_by_rank = scale_by_rank

    def gain(self, pid: int) -> float:
        return 1.0 / self.rank_of(pid) if self.scale_by_rank and pid in self.shapes else 1.0

    def right(self, pid: int, period: int, device: torch.device) -> Tensor:
        n, r = self.shapes[pid][1], self.rank_of(pid)
        return self._basis(
            pid, period, _RIGHT, lambda seed: self._gauss(pid, seed, n, r, device), device
        )

    def _left(self, pid: int, seed: int, period: int, index: Tensor) -> Tensor:
        return self.noise.rows(index, self.rank_of(pid), seed, pid)


def product(
    left: Callable[[int, int], Tensor],
    right: Tensor,
    num_rows: int,
    offset: int,
    count: int,
    pages: Tensor | None = None,
) -> Tensor:
    """Elements `offset` to `offset + count` of left @ rightᵀ in row-major order.

    Args:
        left: gives rows `start` to `stop` of the left factor, float32 (stop - start, r).
        right: float32 (n, r).
        num_rows: m, rows of the product.
        pages: float32 (rows, n) to write to, where it has enough rows; None for new memory.

    Returns:
        float32 (count,).
    """
    width = right.shape[0]
    first = offset // width // BLOCK * BLOCK
    last = min(num_rows, -(-(offset + count) // width))
    last = min(num_rows, -(-last // BLOCK) * BLOCK)
    rows = left(first, last)
    if pages is not None and len(pages) >= last - first:
        out = pages[: last - first]
    else:
        out = torch.empty(last - first, width, dtype=torch.float32, device=right.device)
    for i in range(0, last - first, BLOCK):
        torch.mm(rows[i : i + BLOCK], right.T, out=out[i : i + BLOCK])
    skip = offset - first * width
    return out.view(-1)[skip : skip + count]


def factor_shape(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """Shape (m, n) in which a tensor is factorised.

    Its own, dimensions after the first taken together; the most nearly square one where a side is
    shorter than twice the rank, as SubZero's code does for LoRA and prefix tensors.
    """
    m, n = shape[0], math.prod(shape[1:])
    if min(m, n) >= 2 * rank:
        return m, n
    total = m * n
    side = next(k for k in range(math.isqrt(total), 0, -1) if total % k == 0)
    return side, total // side
