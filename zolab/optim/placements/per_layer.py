"""One sign at a time, each module perturbing its own weights while it computes."""

from __future__ import annotations

from collections.abc import Sequence

from zolab.optim.placements.base import Closure, Probe
from zolab.optim.placements.paired import CleanWeights


class PerLayer(CleanWeights):
    """As `Paired`, but with two separate forwards: for models whose batch cannot be doubled.

    Scratch is one module's weights. The weights stay what they are, so nothing drifts in 16 bits
    and masks see clean weights.
    """

    name = "per_layer"

    def losses(
        self, probes: Sequence[Probe], eps: Sequence[float], closure: Closure
    ) -> list[float]:
        return [
            self._one(probe.seed, scale, eps, closure) for probe in probes for scale in probe.scales
        ]
