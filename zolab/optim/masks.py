"""Which coordinates are perturbed and updated: the `sparsity` group of the configs.

`sparsity` is always the share of coordinates that stay FROZEN (0 = dense), as in the Sparse-MeZO
paper (arXiv 2402.15751); code bases differ. A mask sees clean weights only and stays as it is from
the first probe of a step to the end of its update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zolab.optim.keys import probe_seed
from zolab.optim.parameters import ParamInfo
from zolab.optim.philox import CHUNK, Stream, words

VECTORS = ("dense", "frozen", "masked")


class Dense:
    """No mask: every coordinate of every trained parameter moves."""

    #: True when the mask depends on neither the weights nor the step.
    static = True
    sparsity = 0.0

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        """Called once, with the initial weights."""

    def keep(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor | bool:
        """The coordinates that move: True (all), False (none) or a bool tensor of the shape.

        Args:
            info: which parameter.
            weight: its clean weights, full shape.
            step: step number, from 1.
        """
        return True

    def state(self) -> dict[str, float]:
        """What `setup` found in the initial weights, exactly; goes into the run's header."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what `state` gave, instead of `setup` on weights that have moved since."""


class _Sparse(Dense):
    """Shared by the masks that freeze a share of each tensor.

    Args:
        sparsity: share frozen, 0 <= sparsity < 1.
        vectors: 1-D tensors (biases, norm gains): "dense" moves them all, "frozen" none of them,
            "masked" treats them like the others. The paper does not say; dense is ours.
    """

    static = False

    def __init__(self, sparsity: float = 0.75, vectors: str = "dense") -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity.sparsity = {sparsity}: expected 0 <= sparsity < 1")
        if vectors not in VECTORS:
            raise ValueError(f"sparsity.vectors = {vectors!r}: expected {', '.join(VECTORS)}")
        self.sparsity = sparsity
        self.vectors = vectors

    def keep(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor | bool:
        if self.sparsity == 0.0:
            return True
        if info.is_vector and self.vectors != "masked":
            return self.vectors == "dense"
        return self._choose(info, weight, step)

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        raise NotImplementedError


class _Magnitude(_Sparse):
    """Thresholds per tensor from the initial weights, fixed; the mask follows today's weights."""

    def __init__(self, sparsity: float = 0.75, vectors: str = "dense") -> None:
        super().__init__(sparsity, vectors)
        self.thresholds: dict[str, float] = {}

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        if self.sparsity > 0.0:
            self.thresholds = {
                info.name: self._threshold(info.data)
                for info in infos
                if not info.is_vector or self.vectors == "masked"
            }

    def state(self) -> dict[str, float]:
        return dict(self.thresholds)

    def load_state(self, state: dict[str, float]) -> None:
        self.thresholds = dict(state)

    def _threshold(self, weight: Tensor) -> float:
        raise NotImplementedError


class SmallWeights(_Magnitude):
    """Sparse-MeZO (arXiv 2402.15751, section 3): move the weights with |w| <= h.

    h is the (1 - sparsity) quantile of |w0| of the tensor. The printed pseudo-code compares w
    without the absolute value; the prose says magnitude, and so do we.
    """

    def _threshold(self, weight: Tensor) -> float:
        rank = math.ceil((1.0 - self.sparsity) * weight.numel())
        return _kth_magnitude(weight, max(1, rank))

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        return weight.abs() <= self.thresholds[info.name]


class LargeWeights(_Magnitude):
    """The paper's control: move the weights with |w| >= h, h the sparsity quantile of |w0|."""

    def _threshold(self, weight: Tensor) -> float:
        frozen = math.floor(self.sparsity * weight.numel())
        return _kth_magnitude(weight, min(frozen + 1, weight.numel()))

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        return weight.abs() >= self.thresholds[info.name]


class RandomMask(_Sparse):
    """R-MeZO, the paper's other control: a random mask of the same density.

    Args:
        resample: "run" keeps one mask for the whole run; "step" draws a new one each step.
    """

    def __init__(
        self, sparsity: float = 0.75, vectors: str = "dense", resample: str = "run"
    ) -> None:
        super().__init__(sparsity, vectors)
        if resample not in ("run", "step"):
            raise ValueError(f"sparsity.resample = {resample!r}: expected run or step")
        self.resample = resample
        self.static = resample == "run"
        self._run_seed = 0

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        self._run_seed = run_seed

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        # Probe numbers of real directions are small: the key below is used by nothing else.
        seed = probe_seed(self._run_seed, 0 if self.static else step, (1 << 32) - 1)
        limit = round((1.0 - self.sparsity) * (1 << 32))
        keep = torch.empty(info.numel, dtype=torch.bool, device=weight.device)
        for start in range(0, info.numel, 4 * CHUNK):
            part = keep[start : start + 4 * CHUNK]
            part.copy_(words(start, len(part), seed, info.pid, Stream.MASK, keep.device) < limit)
        return keep.view(weight.shape)


def _kth_magnitude(weight: Tensor, k: int) -> float:
    """The k-th smallest absolute value (k from 1), exact in the weight's own dtype."""
    magnitude = weight.detach().abs().view(-1)
    if magnitude.dtype in (torch.float16, torch.bfloat16):
        magnitude = magnitude.float()
    return float(torch.kthvalue(magnitude, k).values)


_BIT = tuple(1 << i for i in range(8))


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as uint8, eight coordinates a byte: (ceil(numel / 8),)."""
    flat = mask.view(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (padded * torch.tensor(_BIT, dtype=torch.uint8, device=mask.device)).sum(
        1, dtype=torch.uint8
    )


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of `shape` that `pack_bits` was given."""
    bit = torch.tensor(_BIT, dtype=torch.uint8, device=packed.device)
    flat = (packed[:, None] & bit).view(-1)[: shape.numel()]
    return flat.to(torch.bool).view(shape)
