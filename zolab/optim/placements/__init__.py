"""Where weights live and how a perturbed loss is evaluated."""

from zolab.optim.placements.base import Placement, Probe
from zolab.optim.placements.in_place import InPlace
from zolab.optim.placements.offload import Offload
from zolab.optim.placements.paired import Paired
from zolab.optim.placements.per_layer import PerLayer

__all__ = ["InPlace", "Offload", "Paired", "PerLayer", "Placement", "Probe"]
