"""What a run tells about its own health while it trains, see `zolab.tracking.health`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zolab.learner import Learner
from zolab.progress import Progress
from zolab.tracking.health import COLUMNS, MIN_ROWS, assess

#: Weights looked at to tell how many have moved.
SAMPLE = 1 << 16
_PIECE = 1 << 20


class Watch:
    """Looks at weights and rows of one attempt; changes nothing.

    Args:
        model: with the weights the run began with: made before anything is resumed.
        learner: what trains it.
    """

    def __init__(self, model: nn.Module, learner: Learner) -> None:
        held = (p for p in model.parameters() if p.device.type != "meta")
        self._params = [p for p in held if p.is_floating_point()]
        self._training = [p for p in self._params if p.requires_grad]
        self._stride = max(1, sum(p.numel() for p in self._training) // SAMPLE)
        self._journaled = learner.journaled
        self._groups = learner.param_groups
        self._begin = list(self._sample()) if learner.journaled else []
        self._said: set[str] = set()
        self._look_at = MIN_ROWS

    def facts(self) -> dict[str, float]:
        """Columns of the first row: number of weights, and their root mean square."""
        count = sum(p.numel() for p in self._params)
        # In pieces: a copy of a whole embedding would show in the peak memory.
        pieces = (x for p in self._params for x in p.detach().flatten().split(_PIECE))
        squares = sum(float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in pieces)
        rms = (squares / count) ** 0.5 if count else 0.0
        return {
            "model/num_params": count,
            # Rounded: the order of a sum may differ between two attempts at this row.
            "model/weight_rms": float(f"{rms:.6g}"),
        }

    def moved(self) -> dict[str, float]:
        """Share of the sampled weights that are not what the run began with."""
        if not self._begin:
            return {}
        # A block that lies elsewhere at the moment (offload) is not looked at.
        pairs = zip(self._begin, self._sample(), strict=True)
        now = [(a, b) for a, b in pairs if a.shape == b.shape and a.device == b.device]
        total = sum(b.numel() for _, b in now)
        same = sum(int((a == b).sum()) for a, b in now)
        return {"zo/moved_share": 1.0 - same / total} if total else {}

    def tell(self, rows: Mapping[int, Mapping[str, Any]], progress: Progress) -> None:
        """Say each finding once: after the first rows, and whenever their number has doubled."""
        if not self._journaled or len(rows) < self._look_at:
            return
        self._look_at = 2 * len(rows)
        ordered = [rows[step] for step in sorted(rows)]
        columns = {key: [row.get(key) for row in ordered] for key in COLUMNS}
        dtype = str(self._params[0].dtype).removeprefix("torch.") if self._params else "float32"
        found = assess(columns, eps=self._groups[0].get("eps"), dtype=dtype)
        for sentence, sign in zip(found.warnings, found.signs, strict=True):
            if sign not in self._said:
                self._said.add(sign)
                progress.say(f"health: {sentence}")

    def _sample(self) -> Iterable[Tensor]:
        """Evenly spaced weights of every parameter that trains."""
        for parameter in self._training:
            yield parameter.detach().flatten()[:: self._stride].clone()
