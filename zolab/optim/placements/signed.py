"""A parameter as each sign perturbs it, for as long as a module computes with it."""

from __future__ import annotations

import time
from typing import Any, Protocol

from torch import Tensor

from zolab.optim import native
from zolab.optim.bits import Places
from zolab.optim.engine import Engine
from zolab.optim.native.few import Patch
from zolab.optim.parameters import ParamInfo


class Signed(Protocol):
    """One parameter, or some rows of one."""

    def of(self, sign: float) -> Tensor:
        """W + eps z or W - eps z, until it is asked for again."""

    def rest(self) -> None:
        """The module has computed."""


class Copies:
    """Two copies beside the weights, which are only read.

    Args:
        both: W + eps z and W - eps z.
    """

    def __init__(self, both: tuple[Tensor, Tensor]) -> None:
        self._both = both

    def of(self, sign: float) -> Tensor:
        return self._both[0 if sign > 0 else 1]

    def rest(self) -> None:
        pass


class Patched:
    """The weights' own memory, where so few of them move that nearly all of a copy would be what it
    was copied from: those few are exchanged before each product, and put back bit by bit after the
    last. Takes three values for each that moves, and no copies.

    Args:
        engine: noise.
        patch: of these weights.
        rows: the clean weights.
        seed: direction.
        eps: perturbation scale.
    """

    def __init__(self, engine: Engine, patch: Patch, rows: Tensor, seed: int, eps: float) -> None:
        self._clock, self._patch, self._rows = engine.clock, patch, rows
        self._seed, self._eps, self._sign = seed, eps, 0.0

    def of(self, sign: float) -> Tensor:
        begin = time.perf_counter()
        if self._sign == 0.0:
            self._patch.begin(self._seed, sign * self._eps)
        elif sign != self._sign:
            self._patch.turn()
        self._sign = sign
        self._clock.perturb += time.perf_counter() - begin
        return self._rows

    def rest(self) -> None:
        begin = time.perf_counter()
        self._patch.rest()
        self._clock.perturb += time.perf_counter() - begin


class Patches:
    """What the kernels were told of weights few of which move, as long as it is the case.

    Args:
        engine: noise.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._told: dict[tuple[int, int], tuple[Any, ...]] = {}

    def of(
        self, info: ParamInfo, rows: Tensor, seed: int, eps: float, mask: Places, offset: int = 0
    ) -> Patched:
        """A parameter, or some rows of it.

        Args:
            info: which parameter.
            rows: its clean weights, or some rows of them; contiguous, as the native kernels take
                them.
            seed: direction.
            eps: perturbation scale.
            mask: what moves of the whole parameter.
            offset: index of the first element of `rows` within the parameter.
        """
        kind = self.engine.source.kind_of(info.pid)
        facts = (native.loaded(), mask, kind, rows.data_ptr(), rows.numel(), rows.dtype)
        found = self._told.get((info.pid, offset))
        if found is None or found[0][1] is not mask or found[0] != facts:
            found = facts, Patch(kind, rows, info.pid, mask, offset)
            self._told[info.pid, offset] = found
        return Patched(self.engine, found[1], rows, seed, eps)
