"""Block-wise steps: each block of the model is probed on its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zolab.optim.directions import Kept
from zolab.optim.engine import Update
from zolab.optim.masks import Dense, layer_of
from zolab.optim.memory import Memory, whole
from zolab.optim.placements import Placement, Probe
from zolab.optim.placements.base import Closure
from zolab.optim.zero_order import StepRecord, ZeroOrder

OUTSIDE = ("frozen", "blocks")


class BlockWise(ZeroOrder):
    """Block-wise ZO of ZO-Bench (arXiv 2402.11592): 2 forwards per block and direction, no state.

    A block is a layer: the parameters whose names share the first number. Each is perturbed alone,
    with the one seed of the step. Its coefficient then moves it at once, before the next block is
    probed (`coordinate`), or all blocks move at the end of the step.

    With `coordinate`, `estimate` already moves weights; `step` only ends the step.

    Args:
        coordinate: see above.
        outside: parameters in no layer (embeddings, final norm): "frozen", or "blocks", where each
            module among them is a block of its own. The paper's program has the latter in the
            recorded run.
        params, lr, eps, weight_decay, options: see `ZeroOrder`; the order of `params` is the order
            of the blocks.

    Raises:
        ValueError: no block, or a mask (blocks are the mask).
    """

    needs_weights = "block-wise steps bind one to each block, and only one can move the weights"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        coordinate: bool = True,
        outside: str = "blocks",
        mask: Dense | None = None,
        **options: Any,
    ) -> None:
        if outside not in OUTSIDE:
            raise ValueError(f"outside = {outside!r}: expected one of {', '.join(OUTSIDE)}")
        if mask is not None and mask.sparsity > 0.0:
            raise ValueError("sparsity: block-wise steps choose what moves, so they take no mask")
        self.coordinate, self.outside = coordinate, outside
        self.blocks: list[_Block] = []
        parts = ("estimator", "direction", "rule")
        fresh = {name: copy.deepcopy(options.get(name)) for name in parts}  # not bound yet
        super().__init__(params, lr, eps, weight_decay, mask=mask, **options)
        common = {"seed": self.seed, "model": self._model, "seeds": self.seed_of}
        for groups in self._split():
            own = {**copy.deepcopy(fresh), "placement": copy.copy(self._fresh)}
            block = _Block(groups, lr, eps, **own, **common)
            if not isinstance(self.engine.source, Kept):
                # Each block is small enough to keep its z, all of them together are not.
                block.engine.source = block.direction
            block.engine.clock = self.engine.clock
            self.blocks.append(block)

    def use_placement(self, placement: Placement) -> None:
        self._fresh = copy.copy(placement)
        super().use_placement(placement)
        for block in self.blocks:
            block.use_placement(copy.copy(self._fresh))

    def _split(self) -> list[list[dict[str, Any]]]:
        """The parameter groups of each block, blocks in order of their first parameter."""
        members: dict[str, list] = {}
        for info in self.infos:
            layer = layer_of(info.name)
            if layer is not None:
                members.setdefault(layer, []).append(info)
            elif self.outside == "blocks":
                members.setdefault(info.name.rpartition(".")[0], []).append(info)
        if not members:
            raise ValueError("nothing to train: no trained parameter is in a layer")
        out = []
        for infos in members.values():
            groups = []
            for number, group in enumerate(self.param_groups):
                own = [(info.name, info.param) for info in infos if info.group == number]
                rest = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                if own:
                    groups.append({**rest, "params": own, "parent": number})
            out.append(groups)
        return out

    def memory(self) -> Memory:
        return whole(block.memory() for block in self.blocks)

    # -- a step ----------------------------------------------------------------------------------

    def _take(
        self, step: int, probes: list[Probe], closure: Closure
    ) -> tuple[StepRecord, Update | None]:
        records = []
        for block in self._synchronised():
            block.estimate(closure)
            records.append(block.pending_record)
            if self.coordinate:
                block.step()
                block.flush()
        losses = tuple(loss for record in records for loss in record.losses)
        skipped = [i for i, record in enumerate(records) if record.coefficients is None]
        coefficients = tuple(c for record in records for c in record.coefficients or ())
        finite = [record.loss for record in records if math.isfinite(record.loss)]
        mean = sum(finite) / len(finite) if finite else math.nan
        extra = {"skipped": skipped} if skipped else None
        record = StepRecord(
            step, records[0].lr, losses, coefficients or None, mean, len(losses), extra
        )
        return record, None

    def _finish(self, step: int, update: Update | None, losses: tuple[float, ...]) -> None:
        for block in self.blocks:
            if block.num_steps < step:
                block.step()
        self.flush()
        self.num_steps = step

    @torch.inference_mode()
    def replay(
        self,
        step: int,
        lr: float,
        coefficients: Sequence[float] | None,
        extra: dict[str, Any] | None = None,
        losses: Sequence[float] = (),
    ) -> None:
        if step != self.num_steps + 1:
            raise ValueError(f"replay of step {step}: expected step {self.num_steps + 1}")
        self._begin(step)
        skipped = set((extra or {}).get("skipped", ()))
        left = list(coefficients or ())
        left_losses = list(losses)
        for number, block in enumerate(self._synchronised()):
            points = block.estimator.plan(step)
            count = len({point.probe for point in points})
            own = None if number in skipped or coefficients is None else tuple(left[:count])
            first = block.param_groups[0]
            rate = lr if first["parent"] == 0 else first["lr"]
            block.replay(step, rate, own, None, left_losses[: len(points)])
            left = left if own is None else left[count:]
            left_losses = left_losses[len(points) :]
        self._finish(step, None, tuple(losses))

    def _synchronised(self) -> list[_Block]:
        """The blocks, with the rates the groups have now."""
        for block in self.blocks:
            for group in block.param_groups:
                mine = self.param_groups[group["parent"]]
                group.update({key: mine[key] for key in ("lr", "eps", "weight_decay")})
        return self.blocks

    # -- state -----------------------------------------------------------------------------------

    def flush(self) -> None:
        for block in self.blocks:
            block.flush()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}/{key}": value
            for number, block in enumerate(self.blocks)
            for key, value in block.tensors().items()
        }

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        for number, block in enumerate(self.blocks):
            own = f"{number}/"
            block.load_tensors(
                {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}, step
            )
            block._planned = block._pending = None  # seeds and weights may be others now
            block.placement.forget()
        self.num_steps = step


class _Block(ZeroOrder):
    """One block: as `ZeroOrder`, but its weights stand clean while other blocks are probed."""

    @property
    def pending_record(self) -> StepRecord:
        return self._pending[0]

    def _losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[float, ...]:
        losses = super()._losses(probes, closure)
        self.placement.rest()
        return losses

    def _retrace(
        self,
        step: int,
        probes: list[Probe],
        slopes: tuple[float, ...] | None,
        lr: tuple[float, ...],
        extra: dict[str, Any],
    ) -> Update | None:
        update = super()._retrace(step, probes, slopes, lr, extra)
        self.placement.rest()
        return update
