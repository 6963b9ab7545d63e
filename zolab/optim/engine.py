"""What placements and rules share: the trained parameters, their noise, their masks, one sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zolab.optim import fast, native
from zolab.optim.backend import Limit, Term, pair, resweep_, sweep_
from zolab.optim.bits import Places, pack_bits, unpack_bits
from zolab.optim.clock import Clock
from zolab.optim.directions import Direction, Kept
from zolab.optim.late import Late
from zolab.optim.masks import Dense
from zolab.optim.moments import Step, has_state
from zolab.optim.native.walk import fills, pairs
from zolab.optim.parameters import ParamInfo

#: Models whose trained float32 elements fit in this many bytes trade memory for time: z is kept
#: between the sweeps of a step, and masks are held as bytes instead of bits.
KEEP_BYTES = 32 << 20


@dataclass(frozen=True)
class Update:
    """What a rule needs for one step, frozen when the step was taken.

    Attributes:
        step: step number, from 1.
        seeds: 64-bit seed of each probe.
        slopes: see `Estimate`; divided by the group's eps they are the coefficients c_j.
        lr, eps, weight_decay: one value per parameter group.
        alive: with slopes that the host has not read, 0 where the step is to be skipped.
    """

    step: int
    seeds: tuple[int, ...]
    slopes: tuple[float | Late, ...]
    lr: tuple[float, ...]
    eps: tuple[float, ...]
    weight_decay: tuple[float, ...]
    alive: Late | None = None

    def kept(self, factor: float) -> float | Late:
        """A factor on the weights, 1 where the step is skipped."""
        late = factor != 1.0 and self.alive is not None
        return (self.alive * factor).where(self.alive, 1.0) if late else factor

    def coefficients(self, group: int) -> list[float | Late]:
        """Coefficient of each z_j in the gradient estimate: c_j / n, for one parameter group."""
        return [slope / self.eps[group] / len(self.slopes) for slope in self.slopes]


class Engine:
    """The trained parameters and everything keyed by them.

    Args:
        infos: trained parameters, in order.
        direction: draws z.
        mask: chooses coordinates; `setup` or `load_state` has been called.
    """

    def __init__(self, infos: Sequence[ParamInfo], direction: Direction, mask: Dense) -> None:
        self.infos = list(infos)
        self.direction = direction
        self.mask = mask
        self.step = 0
        self.clock = Clock()
        total = sum(info.numel for info in self.infos)
        self.source: Direction | Kept = direction
        self._small = 4 * total <= KEEP_BYTES
        on = fast.kernels(direction.kind, infos[0].data) if infos else None
        if self._small and (on is None or direction.kind in on.READS_KEPT):
            self.source = Kept(direction, {info.pid: info.numel for info in self.infos})
        self._held: dict[int, Tensor | Places | bool] = {}

    def scaled(self, update: Update, info: ParamInfo) -> Update:
        """The update of one parameter, with the factor its direction puts on the estimate."""
        gain = self.direction.gain(info.pid)
        if gain == 1.0:
            return update
        return replace(update, slopes=tuple(slope * gain for slope in update.slopes))

    def mask_bytes(self, info: ParamInfo) -> int:
        """Bytes of one parameter's mask as it is held over a step."""
        if not self.mask.covers(info):
            return 0
        return info.numel if self._small else -(-info.numel // 8)

    def forget(self) -> None:
        """Drop whatever was derived from the run seed, after that seed changed."""
        self._held.clear()

    # -- masks -----------------------------------------------------------------------------------

    def hold_mask(
        self,
        info: ParamInfo,
        weight: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Decide a parameter's mask from its clean weights now and keep it.

        Args:
            info: which parameter.
            weight: its clean weights, where `info.data` is not them at the moment.
            device: where to keep the mask; None: where the weights are.
        """
        weight = info.data if weight is None else weight
        held = self._compact(self.mask.keep(info, weight, self.step))
        elsewhere = device is not None and not isinstance(held, bool)
        self._held[info.pid] = held.to(device) if elsewhere else held

    def release_mask(self, info: ParamInfo) -> None:
        """Forget one held mask: it is decided anew when it is next needed."""
        self._held.pop(info.pid, None)

    def renew_mask(self, info: ParamInfo) -> None:
        """A new step begins for this parameter and its weights are clean."""
        if not self.mask.static:
            if self.mask.covers(info):
                fast.settle()
            self.hold_mask(info)

    def drop_masks(self) -> None:
        """Forget held masks; those that never change stay."""
        if not self.mask.static:
            self._held.clear()

    def mask_of(self, info: ParamInfo, weight: Tensor | None = None) -> Tensor | bool:
        """The mask in force: held if there is one, else decided from clean weights.

        Args:
            info: which parameter.
            weight: its clean weights, where `info.data` is not them at the moment.
        """
        weight = info.data if weight is None else weight
        held = self._held.get(info.pid)
        if held is None:
            keep = self.mask.keep(info, weight, self.step)
            if self.mask.static:
                self._held[info.pid] = self._for_the_run(keep, weight)
            return keep
        if isinstance(held, Places):
            return held.spread(info.data.shape)
        if isinstance(held, bool) or held.dtype == torch.bool:
            return held
        return unpack_bits(held, info.data.shape)

    def stands_still(self, info: ParamInfo) -> bool:
        """Whether the mask in force leaves a whole parameter as it is."""
        held = self._held.get(info.pid)
        if held is None and not self.mask.covers(info):
            held = self.mask.keep(info, info.data, self.step)
        return held is False

    def choice_of(
        self, info: ParamInfo, weight: Tensor | None = None, state: bool = False
    ) -> Tensor | Places | Limit | bool:
        """`mask_of` as the sweeps take it: as it is held where the kernels read that, as a limit
        where they decide it along the way.

        Args:
            info: which parameter.
            weight: its clean weights, where `info.data` is not them at the moment.
            state: whether the sweep has steps with moments.
        """
        held = self._held.get(info.pid)
        if held is None:
            limit = self.mask.limit(info)
            now = self.mask_of(info, weight) if limit is None else limit
            held = self._held.get(info.pid)  # that of a run is held from now on
            if held is None:
                return now
        where = info.data if weight is None else weight
        bits = isinstance(held, Tensor) and held.dtype == torch.uint8
        in_parts = (bits and where.shape[-1] % 8 == 0) or isinstance(held, Places)
        return held if in_parts and self._reads(held, where, state) else self.mask_of(info, weight)

    def _reads(self, held: Tensor | Places | bool, weight: Tensor, state: bool) -> bool:
        """Whether kernels take a mask over some weights as it is held."""
        on = fast.kernels(self.source.kind, weight, state)
        return on is not None and (on.READS_PLACES or not isinstance(held, Places))

    def _compact(self, keep: Tensor | bool) -> Tensor | bool:
        """A mask as it is held over a step: one bit a weight, save where packing takes too long."""
        return keep if isinstance(keep, bool) or self._small else pack_bits(keep)

    def _for_the_run(self, keep: Tensor | bool, weight: Tensor) -> Tensor | Places | bool:
        """The same for one that stays: where few move and the kernels read that, their places."""
        on = None if isinstance(keep, bool) else fast.kernels(self.source.kind, weight)
        if self._small or on is None or not on.READS_PLACES:
            return self._compact(keep)
        places = Places.of(keep)
        return self._compact(keep) if places is None else places

    def _room(self, info: ParamInfo) -> Tensor:
        """Where a sweep writes the mask that it decides: that of the step before, if it is held."""
        held = self._held.get(info.pid)
        if not isinstance(held, Tensor):
            size, dtype = -(-info.numel // 8), torch.uint8
            if self._small:
                size, dtype = info.numel, torch.bool
            held = torch.empty(size, dtype=dtype, device=info.data.device)
            self._held[info.pid] = held
        return held

    def told(
        self, info: ParamInfo, anew: bool, before: bool
    ) -> tuple[Tensor | Places | bool, Limit | None] | None:
        """What one sweep goes by, where kernels read masks in any form: the mask in force as it is
        held (True or False for all or nothing), and the limit that decides.

        Args:
            info: which parameter.
            anew: a step begins, and masks that move are decided within the sweep.
            before: whether something is done under the mask of the step before, first.

        Returns:
            None where a sweep is not enough.
        """
        anew = anew and not self.mask.static
        if not self.mask.covers(info):
            was = self.mask_of(info)
            if anew:
                now = self.mask.keep(info, info.data, self.step)
                if now is not was:
                    return None
                self._held[info.pid] = now
            return was, None
        held = self._held.get(info.pid)
        limit = self.mask.limit(info)
        if anew:
            ready = limit is not None and (isinstance(held, Tensor) or not before)
            return (self._room(info), limit) if ready else None
        if held is None and limit is None:
            self.mask_of(info)  # that of a run is held from now on
            held = self._held.get(info.pid)
        if held is not None:
            return held, None
        return None if limit is None else (True, limit)

    # -- sweeps ----------------------------------------------------------------------------------

    def sweep(
        self, info: ParamInfo, terms: Sequence[Term | Step], mask: Tensor | Places | Limit | bool
    ) -> None:
        """Apply terms to one parameter in place, where the mask allows."""
        if mask is False or not terms:
            return
        chosen = None if mask is True else mask
        begin = time.perf_counter()
        sweep_(info.data, info.pid, terms, self.source, chosen)
        self.clock.perturb += time.perf_counter() - begin

    def sweep_held(self, info: ParamInfo, terms: Sequence[Term | Step]) -> None:
        """The same under the mask in force, taken as it is held where the kernels read bits."""
        held = self._held.get(info.pid)
        if isinstance(held, Tensor | Places) and self._reads(held, info.data, has_state(terms)):
            self.sweep(info, terms, held)
        else:
            self.sweep(info, terms, self.mask_of(info))

    def resweep(
        self, info: ParamInfo, before: Sequence[Term | Step], after: Sequence[Term | Step]
    ) -> None:
        """A step begins: `before` under the mask in force, then a new mask, then `after` under it.

        Args:
            info: which parameter; its weights are clean after `before`.
            before: terms that belong to the step before.
            after: terms of the new step.
        """
        if not self.mask.covers(info):  # it moves or stands as a whole
            was = self.mask_of(info)
            self.renew_mask(info)
            if was is self.mask_of(info):
                self.sweep_held(info, [*before, *after])
                return
            self.sweep(info, before, was)
            self.sweep_held(info, after)
            return
        held, limit = self._held.get(info.pid), self.mask.limit(info)
        ready = isinstance(held, Tensor) or not before
        state = has_state(before)
        if limit is not None and ready and fast.handles(self.source.kind, info.data, state):
            held = self._room(info)
            begin = time.perf_counter()
            resweep_(info.data, info.pid, before, after, limit, held, self.source)
            self.clock.perturb += time.perf_counter() - begin
            return
        self.sweep_held(info, before)
        self.renew_mask(info)
        self.sweep_held(info, after)

    def factors(self, info: ParamInfo, weight: Tensor, seed: int) -> tuple[Tensor, Tensor] | None:
        """z of a matrix as left @ rightᵀ, float32 (m, r) and (n, r); None where it is no such
        product in the matrix's own shape, or a mask is on it.

        Args:
            info: which parameter.
            weight: its clean weights.
            seed: direction.
        """
        begin = time.perf_counter()
        found = self.direction.factors(info.pid, seed, weight.device)
        self.clock.perturb += time.perf_counter() - begin
        if found is None or weight.shape != (len(found[0]), len(found[1])):
            return None
        return found if self.choice_of(info, weight) is True else None

    def pairs(
        self, infos: Sequence[ParamInfo], weights: Sequence[Tensor], seed: int, eps: Sequence[float]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """`pair_rows` of several small parameters at once, by id; without those that a mask is on.

        Args:
            infos: which parameters, `is_native`.
            weights: their clean weights.
            seed: direction.
            eps: perturbation scale of each group.
        """
        those = [
            (info, weight)
            for info, weight in zip(infos, weights, strict=True)
            if self.choice_of(info, weight) is True
        ]
        if not those:
            return {}
        begin = time.perf_counter()
        pids = [info.pid for info, _ in those]
        scales = [eps[info.group] for info, _ in those]
        kind = self.source.kind_of(pids[0])
        made = pairs(kind, [weight for _, weight in those], pids, seed, scales)
        self.clock.perturb += time.perf_counter() - begin
        return dict(zip(pids, made, strict=True))

    def is_native(self, info: ParamInfo) -> bool:
        """Whether a parameter's z is noise that the native kernels make."""
        return fast.name(self.source.kind_of(info.pid), info.data) == native.NAME

    def whole_zs(
        self, infos: Sequence[ParamInfo], weights: Sequence[Tensor], seed: int
    ) -> dict[int, Tensor]:
        """`whole_z` of several at once, by id, as `pairs` is."""
        those = [
            info
            for info, weight in zip(infos, weights, strict=True)
            if self.choice_of(info, weight) is True
        ]
        if not those:
            return {}
        pids, sizes = [info.pid for info in those], [info.numel for info in those]
        flat = fills(self.source.kind_of(pids[0]), pids, sizes, seed)
        return dict(zip(pids, flat.split(sizes), strict=True))

    def whole_z(self, info: ParamInfo, weight: Tensor, seed: int) -> Tensor:
        """z of a small parameter, 0 where a mask leaves it alone: float32 (numel,)."""
        z = self.source.z(info.pid, seed, 0, info.numel, weight.device)
        mask = self.mask_of(info, weight)
        return z if mask is True else z * mask

    def pair_rows(
        self,
        info: ParamInfo,
        rows: Tensor,
        seed: int,
        eps: float,
        mask: Tensor | Places | Limit | bool,
        offset: int,
    ) -> tuple[Tensor, Tensor]:
        """W + eps z and W - eps z of one parameter, from its clean weights, or of a block of its
        rows that begins at element `offset`.

        Args:
            info: which parameter.
            rows: its clean weights.
            seed: direction.
            eps: perturbation scale.
            mask: of the block, as `choice_of` gives it.
            offset: see above.
        """
        if mask is False:
            return rows, rows
        chosen = None if mask is True else mask
        begin = time.perf_counter()
        both = pair(rows, info.pid, seed, eps, self.source, chosen, offset)
        self.clock.perturb += time.perf_counter() - begin
        return both


def half_precision(tensor: Tensor) -> bool:
    """Whether a tensor is stored in 16 bits."""
    return tensor.dtype in (torch.bfloat16, torch.float16)
