"""Directions that are products of thin factors: z of a matrix is left @ rightᵀ, of rank r.

Bases are functions of (run seed, period, parameter id), so they are never saved: a period is a run
of steps over which the slow factors stay. Tensors of one dimension get plain Gaussian noise. A
matrix too narrow for the rank (LoRA, prefixes) is factorised in its most nearly square shape.

Factors are rounded so far that a product is exact before its last rounding (`products`): an element
has the same bits however a sweep cuts the parameter, and whatever multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zolab.optim import fast, native, products
from zolab.optim.backend import Term
from zolab.optim.directions import Direction
from zolab.optim.keys import probe_seed
from zolab.optim.masks import Dense
from zolab.optim.native.products import by_columns
from zolab.optim.native.products import products as native_products
from zolab.optim.native.products import sweeps as native_sweeps
from zolab.optim.native.walk import fills
from zolab.optim.parameters import ParamInfo
from zolab.optim.products import factor_shape, product, snap_

#: Above every magnitude of a Gaussian number as we draw them.
GAUSS_BOUND = 8.0
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
        self._ranks: dict[int, int] = {}
        self._prepared_bytes = 0
        self._periods: dict[int, int] = {}
        self._last: tuple[int, ...] = ()
        self._bases: dict[tuple[int, int, int], Tensor] = {}
        self._lefts: tuple[int, dict[int, Tensor]] = (-1, {})

    def kind_of(self, pid: int) -> str | None:
        return None if pid in self.shapes else self.noise.kind

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
        self._ranks = {pid: min(self.rank, *shape) for pid, shape in self.shapes.items()}
        self._prepared_bytes = sum(4 * self._ranks[pid] * m for pid, (m, _) in self.shapes.items())
        self._periods, self._last, self._bases, self._lefts = {}, (), {}, (-1, {})

    def due(self, step: int) -> bool:
        return self.period_at(step) not in self._periods.values() and bool(self._periods)

    def begin(self, step: int, seeds: Sequence[int]) -> None:
        # A deferred update still asks for the seeds of the step before; `due` has it applied first.
        before = {s: p for s, p in self._periods.items() if s in self._last and not self.due(step)}
        self._periods = before | dict.fromkeys(seeds, self.period_at(step))
        self._last = tuple(seeds)
        alive = set(self._periods.values())
        self._bases = {k: v for k, v in self._bases.items() if k[1] in alive}
        self._lefts = (-1, {})

    def prepare(self, seed: int, device: torch.device) -> None:
        if fast.name(self.noise.kind, torch.empty(0, device=device)) == native.NAME:
            self._lefts = (seed, self._all_left(seed))

    def prepared_bytes(self) -> int:
        return self._prepared_bytes

    def _all_left(self, seed: int) -> dict[int, Tensor]:
        """`_left` of all parameters, whole, on the CPU, each column in one piece of memory."""
        period, cpu = self._period(seed), torch.device("cpu")
        return {
            pid: _by_columns(self._left(pid, seed, period, range(m), cpu))
            for pid, (m, _) in self.shapes.items()
        }

    def _snapped(self, seed: int, shapes: dict[int, tuple[int, int]]) -> dict[int, Tensor]:
        """Gaussian matrices of these shapes, snapped for a sum over their columns, by id."""
        out = {}
        for rank in {columns for _, columns in shapes.values()}:
            those = {pid: shape for pid, shape in shapes.items() if shape[1] == rank}
            sizes = [math.prod(shape) for shape in those.values()]
            flat = snap_(fills(self.noise.kind, list(those), sizes, seed), rank, GAUSS_BOUND)
            parts = zip(those.items(), flat.split(sizes), strict=True)
            out |= {pid: part.view(shape) for (pid, shape), part in parts}
        return out

    def state_bytes(self) -> int:
        return sum(4 * self.rank_of(pid) * self.kept_rows(*self.shapes[pid]) for pid in self.shapes)

    def kept_rows(self, m: int, n: int) -> int:
        """Rows of the slow factors of a matrix, together."""
        return n

    def scratch_bytes(self, info: ParamInfo) -> int:
        if info.pid not in self.shapes:
            return 0
        (m, n), r = self.shapes[info.pid], self.rank_of(info.pid)
        if self.sweeps(info):
            return 4 * m * r
        # In float64: both factors, and a piece of the product.
        return 12 * m * r + 8 * n * r + 8 * min(info.numel, self.chunk(info.pid))

    def sweeps(self, info: ParamInfo) -> bool:
        return info.pid in self.shapes and products.is_native(self.rank_of(info.pid), info.data)

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
        return self._ranks[pid]

    def chunk(self, pid: int) -> int:
        if pid not in self.shapes:
            return super().chunk(pid)
        width = self.shapes[pid][1]
        return max(1, products.PIECE // width) * width

    def sweep(self, weight: Tensor, pid: int, terms: Sequence[Term]) -> bool:
        if pid not in self.shapes:
            return False
        seeds = dict.fromkeys(term.seed for term in terms)
        factors = {seed: self._factors(pid, seed, weight.device) for seed in seeds}
        products.sweep_(weight, pid, terms, factors)
        return True

    def sweep_all(self, moves: Sequence[tuple[Sequence[Term], Sequence[ParamInfo]]]) -> bool:
        infos = [info for _, those in moves for info in those]
        alike = {(info.param.dtype, info.param.device): info.data for info in infos}
        able = all(info.param.is_contiguous() for info in infos)
        for weight in alike.values():
            able = able and fast.name(self.noise.kind, weight) == native.NAME
            able = able and products.is_native(max(self._ranks.values(), default=1), weight)
        if able:
            native_sweeps(self.noise.kind, [
                (terms, [(info.data, info.pid, self._by_seed(info, terms)) for info in those])
                for terms, those in moves
            ])  # fmt: skip
        return able

    def _by_seed(
        self, info: ParamInfo, terms: Sequence[Term]
    ) -> dict[int, tuple[Tensor, Tensor]] | None:
        """Factors of a parameter's z for the seeds of some terms; None if it has none."""
        if info.pid not in self.shapes:
            return None
        return {term.seed: self._factors(info.pid, term.seed, info.param.device) for term in terms}

    def factors(self, pid: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """left (m, r) and right (n, r), float32, with z = left @ rightᵀ of `shapes[pid]`."""
        if pid not in self.shapes:
            return None
        left, right = self._factors(pid, seed, device)
        return left, right.T

    def _factors(self, pid: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        period, rows = self._period(seed), range(self.shapes[pid][0])
        left = self._lefts[1].get(pid) if self._lefts[0] == seed else None
        if left is None or left.device != device:
            left = self._left(pid, seed, period, rows, device)
        return left, self.right(pid, period, device).T

    def right(self, pid: int, period: int, device: torch.device) -> Tensor:
        """The slow factor V of a period: float32 (n, r), snapped, laid out by columns."""
        raise NotImplementedError

    def _left(
        self, pid: int, seed: int, period: int, index: range | Tensor, device: torch.device
    ) -> Tensor:
        """Rows `index` of the left factor: float32 (len(index), r), snapped."""
        raise NotImplementedError

    def z(self, pid: int, seed: int, offset: int, count: int, device: torch.device) -> Tensor:
        if pid not in self.shapes:
            return super().z(pid, seed, offset, count, device)
        m, n = self.shapes[pid]
        rows = range(offset // n, min(m, -(-(offset + count) // n)))
        period = self._period(seed)
        left = self._left(pid, seed, period, rows, device)
        skip = offset - rows.start * n
        return product(left, self.right(pid, period, device).T).view(-1)[skip : skip + count]

    def rows(self, pid: int, seed: int, index: Tensor, width: int) -> Tensor:
        if pid not in self.shapes:
            return super().rows(pid, seed, index, width)
        m, n = self.shapes[pid]
        if n != width:
            return self.z(pid, seed, 0, m * n, index.device).view(-1, width)[index]
        period = self._period(seed)
        left = self._left(pid, seed, period, index, index.device)
        return product(left, self.right(pid, period, index.device).T)

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

    def _gauss(
        self, pid: int, seed: int, rows: range, columns: int, device: torch.device
    ) -> Tensor:
        """Rows of a Gaussian matrix, as they are drawn."""
        out = torch.empty(len(rows) * columns, dtype=torch.float32, device=device)
        self.noise.fill(out, seed, pid, rows.start * columns)
        return out.view(-1, columns)


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

    def _left(
        self, pid: int, seed: int, period: int, index: range | Tensor, device: torch.device
    ) -> Tensor:
        r = self.rank_of(pid)
        core = snap_(self._gauss(pid, seed, range(r), r, device), r, GAUSS_BOUND)
        basis = self.left_basis(pid, period, device)
        chosen = slice(index.start, index.stop) if isinstance(index, range) else index
        return self._scaled(pid, product(basis[chosen], core))

    def _all_left(self, seed: int) -> dict[int, Tensor]:
        period, cpu = self._period(seed), torch.device("cpu")
        squares = {pid: (self.rank_of(pid),) * 2 for pid in self.shapes}
        cores = self._snapped(seed, squares)
        # (U Z)ᵀ: exact sums, so whichever way it is made.
        factors = [(core.T, self.left_basis(pid, period, cpu).T) for pid, core in cores.items()]
        made = zip(cores, native_products(factors), strict=True)
        return {pid: self._scaled(pid, left.T) for pid, left in made}

    def _scaled(self, pid: int, left: Tensor) -> Tensor:
        """Rows of U Z times s, snapped, in place."""
        r = self.rank_of(pid)
        scale = math.sqrt(math.prod(self.shapes[pid])) / r if self.scale else 1.0
        # Of a row of U, no longer than 1, and a column of the core, no longer than this.
        longest = GAUSS_BOUND * math.sqrt(r) * scale
        return snap_(left, r, 2.0 ** math.ceil(math.log2(longest)), scale)

    def _orthonormal(
        self, pid: int, period: int, side: int, size: int, device: torch.device
    ) -> Tensor:
        rank = self.rank_of(pid)

        def make(seed: int) -> Tensor:
            drawn = self._gauss(pid, seed, range(size), rank, torch.device("cpu"))
            q, r = torch.linalg.qr(drawn.double())
            basis = (q * r.diagonal().sign()).float()
            # Above 1, which rounding may exceed.
            return snap_(_by_columns(basis), rank, 2.0)

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

        def make(seed: int) -> Tensor:
            drawn = self._gauss(pid, seed, range(n), r, device)
            return snap_(_by_columns(drawn), r, GAUSS_BOUND)

        return self._basis(pid, period, _RIGHT, make, device)

    def _left(
        self, pid: int, seed: int, period: int, index: range | Tensor, device: torch.device
    ) -> Tensor:
        r = self.rank_of(pid)
        if isinstance(index, range):
            drawn = self._gauss(pid, seed, index, r, device)
        else:
            drawn = self.noise.rows(index, r, seed, pid)
        return snap_(drawn, r, GAUSS_BOUND)

    def _all_left(self, seed: int) -> dict[int, Tensor]:
        drawn = self._snapped(
            seed, {pid: (m, self.rank_of(pid)) for pid, (m, _) in self.shapes.items()}
        )
        return dict(zip(drawn, by_columns(list(drawn.values())), strict=True))


def _by_columns(matrix: Tensor) -> Tensor:
    """The same matrix, each column in one piece of memory."""
    return matrix.T.contiguous().T
