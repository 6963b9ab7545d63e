"""What zeroth-order methods are compared with: back-propagation, its thrifty forms, no training."""

from zolab.baselines.first_order import SGD, AdamW, FirstOrder
from zolab.baselines.fused import LOMO, AdaLOMO
from zolab.baselines.hift import HiFT
from zolab.baselines.low_rank import APOLLO, GaLore
from zolab.baselines.subset_norm import AdamWSN
from zolab.baselines.zero_shot import ZeroShot

__all__ = [
    "APOLLO",
    "LOMO",
    "SGD",
    "AdaLOMO",
    "AdamW",
    "AdamWSN",
    "FirstOrder",
    "GaLore",
    "HiFT",
    "ZeroShot",
]
