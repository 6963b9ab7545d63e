"""A parameter as each sign perturbs it, for as long as a module computes with it."""

from __future__ import annotations

import time
from typing import Any, Protocol

from torch import Tensor

from zolab.optim import fast, native
from zolab.optim.backend import Limit
from zolab.optim.bits import Places
from zolab.optim.directions import Kept
from zolab.optim.engine import Engine
from zolab.optim.native.perturb import Both, Patch
from zolab.optim.parameters import ParamInfo
from zolab.optim.sent import is_here


class Signed(Protocol):
    """One parameter, or some rows of one."""

    def of(self, sign: float) -> Tensor:
        """W + eps z or W - eps z, until it is asked for again or rests; nothing that is to be read
        later may share its memory."""

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


class _Patched:
    """The weights' own memory, where so few of them move that nearly all of a copy would be what it
    was copied from: those few are exchanged before each product, and put back bit by bit after the
    last. Takes three values for each that moves, and no copies."""

    def __init__(self, told: Told, patch: Patch, rows: Tensor, seed: int, eps: float) -> None:
        self._clock, self._begun, self._patch, self._rows = told.clock, told.begun, patch, rows
        self._seed, self._eps, self._sign = seed, eps, 0.0

    def of(self, sign: float) -> Tensor:
        begin = time.perf_counter()
        if self._sign == 0.0:
            self._begun.append(self._patch)
            self._patch.begin(self._seed, sign * self._eps)
        elif sign != self._sign:
            self._patch.turn()
        self._sign = sign
        self._clock.perturb += time.perf_counter() - begin
        return self._rows

    def rest(self) -> None:
        begin = time.perf_counter()
        self._patch.rest()
        self._sign = 0.0
        self._clock.perturb += time.perf_counter() - begin


class Told:
    """What the native kernels were told of each weight, as long as it is the case.

    Args:
        engine: noise.

    Attributes:
        begun: weights that were perturbed in their own memory since the last `rest`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.clock = engine, engine.clock
        self.begun: list[Patch] = []
        self._told: dict[tuple[int, int], tuple[tuple[Any, ...], Any, Both | Patch | None]] = {}

    def of(
        self,
        info: ParamInfo,
        rows: Tensor,
        seed: int,
        eps: float,
        mask: Tensor | Places | Limit | bool,
        offset: int,
        *,
        here: bool,
    ) -> Signed | None:
        """A parameter, or some rows of it; None where these are not for the kernels alone.

        Args:
            info, rows, seed, eps, mask, offset: as for `Engine.pair_rows`.
            here: whether the rows stay in their memory, and nobody else looks at it, while a
                module computes, and nothing that it returns shares their memory.
        """
        if mask is False:
            return Copies((rows, rows))
        begin, source = time.perf_counter(), self.engine.source
        kind = source.kind_of(info.pid)
        # A mask that is another in each step is not worth holding.
        if isinstance(mask, Tensor) or isinstance(source, Kept) or not _may_be(kind, rows):
            return None
        facts = (
            native.available() and native.loaded(),
            kind,
            id(mask) if isinstance(mask, Places) else mask,
            rows.data_ptr(),
            rows.shape,
            rows.dtype,
            rows.is_contiguous(),
            here,
        )
        found = self._told.get((info.pid, offset))
        if found is None or found[0] != facts:
            maker = None
            if fast.name(kind, rows) == native.NAME:
                patched = here and isinstance(mask, Places)
                chosen = None if mask is True else mask
                maker = (Patch if patched else Both)(kind, rows, info.pid, chosen, offset)
            # with the mask, so that its id is nobody else's
            found = self._told[info.pid, offset] = facts, mask, maker
        maker = found[2]
        if isinstance(maker, Patch):
            return _Patched(self, maker, rows, seed, eps)
        out = maker and Copies(maker.make(seed, eps))
        self.engine.clock.perturb += time.perf_counter() - begin
        return out

    def rest(self) -> None:
        """An evaluation is over, however it ended: all weights are what they were."""
        while self.begun:
            self.begun[-1].rest()
            self.begun.pop()


def _may_be(kind: str | None, rows: Tensor) -> bool:
    """Whether the native kernels could be for some weights, without asking more of these than what
    every tensor tells."""
    return kind is not None and type(rows) is Tensor and is_here(rows)
