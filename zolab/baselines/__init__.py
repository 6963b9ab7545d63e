"""What zeroth-order methods are compared with: back-propagation, its thrifty forms, no training."""

from zolab.baselines.first_order import SGD, AdamW, FirstOrder
from zolab.baselines.fused import LOMO, AdaLOMO
from zolab.baselines.hift import HiFT
from zolab.baselines.linear_probing import LinearProbing
from zolab.baselines.low_rank import APOLLO, GaLore
from zolab.baselines.subset_norm import AdamWSN
from zolab.baselines.untrained import ICL, ZeroShot

__all__ = [
    "APOLLO",
    "ICL",
    "LOMO",
    "SGD",
    "AdaLOMO",
    "AdamW",
    "AdamWSN",
    "FirstOrder",
    "GaLore",
    "HiFT",
    "LinearProbing",
    "ZeroShot",
]
