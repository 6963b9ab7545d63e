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

from zolab.optim.backend import PIECE, Limit
from zolab.optim.keys import permutation, probe_seed
from zolab.optim.parameters import ParamInfo
from zolab.optim.philox import CHUNK, Stream, words

VECTORS = ("dense", "frozen", "masked")
#: Probe number of masks' seeds; those of real directions are small.
MASK_PROBE = (1 << 32) - 1
#: What a parameter outside the layers may be, with the marks in its name; the first that fits.
ROLES = {
    "head": ("head", "score", "classifier", "project_out", "embed_out"),
    "embed": ("emb", "wte", "wpe", "project_in"),
    "final_norm": ("norm", "ln_"),
}


class Dense:
    """No mask: every coordinate of every trained parameter moves."""

    #: True when the mask depends on neither the weights nor the step.
    static = True
    #: True when a tensor moves whole or not at all.
    structured = True
    sparsity = 0.0
    run_seed = 0

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        """Called once, with the initial weights."""
        self.run_seed = run_seed

    def due(self, step: int) -> bool:
        """Whether `refresh` is to be called, with clean weights, before this step."""
        return False

    def refresh(self, infos: Sequence[ParamInfo]) -> None:
        """Decide anew whatever was decided from the weights."""

    def keep(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor | bool:
        """The coordinates that move: True (all), False (none) or a bool tensor of the shape.

        Args:
            info: which parameter.
            weight: its clean weights, full shape.
            step: step number, from 1.
        """
        return True

    def limit(self, info: ParamInfo) -> Limit | None:
        """`keep` as a limit on the weights' own size, where it is one."""

    def covers(self, info: ParamInfo) -> bool:
        """Whether `keep` gives a tensor for this parameter, and not just all or nothing."""
        return False

    def making_bytes(self, info: ParamInfo) -> int:
        """Scratch of `keep`, beside the tensor it gives."""
        return 0

    def setup_bytes(self, info: ParamInfo) -> int:
        """Scratch of `setup` and `refresh` while they look at this parameter."""
        return 0

    def check_not_empty(self, infos: Sequence[ParamInfo]) -> None:
        """Called after `setup`; ValueError when nothing would move."""

    def num_active(self, infos: Sequence[ParamInfo], step: int) -> int:
        """Scalars that move in a step, counted from clean weights; what a table should report."""
        kept = ((info, self.keep(info, info.data, step)) for info in infos)
        return sum(int(k.sum()) if isinstance(k, Tensor) else k * info.numel for info, k in kept)

    def state(self) -> dict[str, float]:
        """What `setup` found in the initial weights, exactly; goes into the run's header."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what `state` gave, instead of `setup` on weights that have moved since."""

    def tensors(self) -> dict[str, Tensor]:
        """State that moves during a run; empty when `setup` decides everything."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""


class LayerMask(Dense):
    """LeZO (arXiv 2410.09823): each step a random share of the layers moves, the rest stays.

    A layer is whatever shares the first number in the canonical parameter name
    ("model.layers.3."). The choice is a function of (run seed, step). round((1 - sparsity) * L)
    of the L layers move, and never fewer than one, so no step is spent on nothing.

    Args:
        sparsity: share of the layers that is frozen in a step, 0 <= sparsity < 1.
        always_active: what outside the layers moves in every step, of embed, head, final_norm;
            the paper does not say, all three is ours. What is left out never moves. A tied head
            is the embedding. Parameters of no known role move in every step.
    """

    static = False

    def __init__(
        self, sparsity: float = 0.75, always_active: Sequence[str] = ("embed", "head", "final_norm")
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity.sparsity = {sparsity}: expected 0 <= sparsity < 1")
        odd = [role for role in always_active if role not in ROLES]
        if odd:
            raise ValueError(f"sparsity.always_active = {odd[0]!r}: expected {', '.join(ROLES)}")
        self.sparsity, self.always_active = sparsity, list(always_active)
        self._layers: dict[str, int] = {}
        self._chosen: tuple[int, frozenset[int]] = (-1, frozenset())

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        super().setup(infos, run_seed)
        names = [layer_of(info.name) for info in infos]
        self._layers = {name: i for i, name in enumerate(dict.fromkeys(filter(None, names)))}
        self._chosen = (-1, frozenset())
        if not self._layers:
            raise ValueError(
                "sparsity = layers: no trained parameter has a layer number in its name "
                f"(first: {infos[0].name}); give named parameters, or use another mask"
            )

    def keep(self, info: ParamInfo, weight: Tensor, step: int) -> bool:
        layer = layer_of(info.name)
        if layer is not None:
            return self.sparsity == 0.0 or self._layers[layer] in self.chosen(step)
        role = role_of(info.name)
        return role is None or role in self.always_active

    def chosen(self, step: int) -> frozenset[int]:
        """Indices of the layers that move in a step, in the order of the parameters."""
        if self._chosen[0] != step:
            total = len(self._layers)
            num = max(1, int((1.0 - self.sparsity) * total + 0.5))
            order = permutation(probe_seed(self.run_seed, step, MASK_PROBE), 0, total)
            self._chosen = (step, frozenset(order[:num].tolist()))
        return self._chosen[1]


class _Sparse(Dense):
    """Shared by the masks that freeze a share of each tensor.

    Args:
        sparsity: share frozen, 0 <= sparsity < 1.
        vectors: 1-D tensors (biases, norm gains): "dense" moves them all, "frozen" none of them,
            "masked" treats them like the others. The paper does not say; dense is ours.
    """

    static = False
    structured = False

    def __init__(self, sparsity: float = 0.75, vectors: str = "dense") -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity.sparsity = {sparsity}: expected 0 <= sparsity < 1")
        if vectors not in VECTORS:
            raise ValueError(f"sparsity.vectors = {vectors!r}: expected {', '.join(VECTORS)}")
        self.sparsity, self.vectors = sparsity, vectors

    def keep(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor | bool:
        if self.covers(info):
            return self._choose(info, weight, step)
        return self.sparsity == 0.0 or self.vectors == "dense"

    def covers(self, info: ParamInfo) -> bool:
        return self.sparsity > 0.0 and (not info.is_vector or self.vectors == "masked")

    def check_not_empty(self, infos: Sequence[ParamInfo]) -> None:
        masked = [info for info in infos if self.covers(info)]
        total = sum(info.numel for info in masked)
        if self.sparsity == 0.0 or (self.vectors == "dense" and len(masked) < len(infos)):
            return
        # So few may be none by chance: count them.
        if (1.0 - self.sparsity) * total < 64 and self.num_active(masked, 1) == 0:
            raise ValueError(
                f"sparsity.sparsity = {self.sparsity}: nothing would move, none of {total} masked "
                f"weights and no vector (sparsity.vectors = {self.vectors!r})"
            )

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        raise NotImplementedError


class _Magnitude(_Sparse):
    """Thresholds from clean weights, the mask from today's weights.

    Args:
        threshold: "tensor" gives each tensor its own quantile (the paper); "global" takes one
            quantile over all masked tensors, so that their densities differ.
        refresh_every: steps between new thresholds, read from the weights as they are then; 0 keeps
            those of the initial weights (the paper).
    """

    below: bool

    def __init__(
        self,
        sparsity: float = 0.75,
        vectors: str = "dense",
        threshold: str = "tensor",
        refresh_every: int = 0,
    ) -> None:
        super().__init__(sparsity, vectors)
        if threshold not in ("tensor", "global"):
            raise ValueError(f"sparsity.threshold = {threshold!r}: expected tensor or global")
        if refresh_every < 0:
            raise ValueError(f"sparsity.refresh_every = {refresh_every}: expected at least 0")
        self.threshold, self.refresh_every = threshold, refresh_every
        self.thresholds: dict[str, float] = {}

    def setup(self, infos: Sequence[ParamInfo], run_seed: int) -> None:
        super().setup(infos, run_seed)
        self.refresh(infos)

    def due(self, step: int) -> bool:
        every = self.refresh_every
        return every > 0 and self.sparsity > 0.0 and step > 1 and (step - 1) % every == 0

    def making_bytes(self, info: ParamInfo) -> int:
        return min(info.numel, PIECE) * info.param.element_size()

    def setup_bytes(self, info: ParamInfo) -> int:
        # A piece as magnitudes and twice as digits, and the counts of 64k digits, old and new.
        wide = max(4, info.param.element_size())
        return min(info.numel, PIECE) * 3 * wide + (1 << 20) if self.covers(info) else 0

    def refresh(self, infos: Sequence[ParamInfo]) -> None:
        masked = [info for info in infos if self.covers(info)]
        if not masked:
            return
        if self.threshold == "global":
            whole = self._quantile([info.data for info in masked])
            self.thresholds = dict.fromkeys((info.name for info in masked), whole)
        else:
            self.thresholds = {info.name: self._quantile([info.data]) for info in masked}

    def state(self) -> dict[str, float]:
        return dict(self.thresholds)

    def load_state(self, state: dict[str, float]) -> None:
        self.thresholds = dict(state)

    def tensors(self) -> dict[str, Tensor]:
        if not self.refresh_every:
            return {}
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in self.thresholds.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self.thresholds = {name: float(value) for name, value in tensors.items()}

    def limit(self, info: ParamInfo) -> Limit | None:
        return Limit(self.thresholds[info.name], self.below) if self.covers(info) else None

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        return Limit(self.thresholds[info.name], self.below).of(weight)

    def _quantile(self, weights: Sequence[Tensor]) -> float:
        raise NotImplementedError


class SmallWeights(_Magnitude):
    """Sparse-MeZO (arXiv 2402.15751, section 3): move the weights with |w| <= h.

    h is the (1 - sparsity) quantile of |w0| of the tensor. The printed pseudo-code compares w
    without the absolute value; the prose says magnitude, and so do we.
    """

    below = True

    def _quantile(self, weights: Sequence[Tensor]) -> float:
        rank = math.ceil((1.0 - self.sparsity) * sum(w.numel() for w in weights))
        return _kth_magnitude(weights, max(1, rank))


class LargeWeights(_Magnitude):
    """The paper's control: move the weights with |w| >= h, h the sparsity quantile of |w0|."""

    below = False

    def _quantile(self, weights: Sequence[Tensor]) -> float:
        total = sum(w.numel() for w in weights)
        return _kth_magnitude(weights, min(math.floor(self.sparsity * total) + 1, total))


class RandomMask(_Sparse):
    """R-MeZO, Sparse-MeZO's other control, and ZO-Bench's gradient pruning: a random mask.

    Each coordinate moves with probability 1 - sparsity. ZO-Bench's own code (arXiv 2402.11592)
    compares a normal number instead of a uniform one, so its zeroed share is Φ(s) (0.69 for 0.5).

    Args:
        resample: "run" keeps one mask for the whole run; "step" draws new ones.
        resample_every: steps that a mask lasts under resample = "step".
    """

    def __init__(
        self,
        sparsity: float = 0.75,
        vectors: str = "dense",
        resample: str = "run",
        resample_every: int = 1,
    ) -> None:
        super().__init__(sparsity, vectors)
        if resample not in ("run", "step"):
            raise ValueError(f"sparsity.resample = {resample!r}: expected run or step")
        if resample_every < 1:
            raise ValueError(f"sparsity.resample_every = {resample_every}: expected at least 1")
        self.resample, self.resample_every = resample, resample_every
        self.static = resample == "run"

    def making_bytes(self, info: ParamInfo) -> int:
        return min(info.numel, 4 * CHUNK) * 18  # int64 lanes of Philox, and the words they give

    def _choose(self, info: ParamInfo, weight: Tensor, step: int) -> Tensor:
        period = 0 if self.static else 1 + (step - 1) // self.resample_every
        seed = probe_seed(self.run_seed, period, MASK_PROBE)
        limit = round((1.0 - self.sparsity) * (1 << 32))
        keep = torch.empty(info.numel, dtype=torch.bool, device=weight.device)
        for start in range(0, info.numel, 4 * CHUNK):
            part = keep[start : start + 4 * CHUNK]
            part.copy_(words(start, len(part), seed, info.pid, Stream.MASK, keep.device) < limit)
        return keep.view(weight.shape)


def layer_of(name: str) -> str | None:
    """A canonical name up to its first number ("model.layers.3"), None outside the layers."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def role_of(name: str) -> str | None:
    """What a parameter outside the layers is, see `ROLES`; None if its name tells nothing."""
    fits = (role for role, marks in ROLES.items() if any(mark in name.lower() for mark in marks))
    return next(fits, None)


def _kth_magnitude(weights: Sequence[Tensor], k: int) -> float:
    """The k-th smallest absolute value (k from 1) of some tensors, exact, without copying them.

    The bits of |w|, read as an integer, are in the order of |w|. So 16 bits are found at a time,
    from the top, by counting.
    """
    wide = torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32
    whole, size = (torch.int64, 64) if wide == torch.float64 else (torch.int32, 32)
    found = 0
    for shift in range(size - 16, -1, -16):
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for part in (part for w in weights for part in w.detach().view(-1).split(PIECE)):
            bits = part.to(wide).abs().view(whole)
            if shift + 16 < size:
                bits = bits[bits >> (shift + 16) == found]
            counts += torch.bincount((bits >> shift) & 0xFFFF, minlength=1 << 16).cpu()
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, k))
        k -= int(below[digit] - counts[digit])
        found = found << 16 | digit
    return float(torch.tensor(found, dtype=whole).view(wide))
