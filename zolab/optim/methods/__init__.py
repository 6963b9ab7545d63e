"""Published methods as names for compositions, one file a family; each equals its YAML (tested).

A constructor gives `ZeroOrder` what differs from MeZO's parts (two_sided × gaussian × dense × sgd);
its docstring has paper, equation, composition, forwards and state. `options` go to `ZeroOrder`:
parts a method leaves open, weight_decay, placement, seed, model.
"""

from zolab.optim.methods.bench import ForwardGradient, ZOBlockWise, ZOConservative, ZOSign
from zolab.optim.methods.low_rank import LOZO, LOZOM, SubZero
from zolab.optim.methods.mezo import (
    NSPSA,
    AdaZetaQueries,
    MeZO,
    MeZOAdam,
    MeZOAdamReplayed,
    MeZOMomentum,
    MeZOMomentumReplayed,
    OnePointMeZO,
    OneSidedMeZO,
)
from zolab.optim.methods.second_order import HeleneReconstructed
from zolab.optim.methods.sparse import LargeWeightsMeZO, LeZO, RMeZO, SparseMeZO

__all__ = [
    "LOZO",
    "LOZOM",
    "NSPSA",
    "AdaZetaQueries",
    "ForwardGradient",
    "HeleneReconstructed",
    "LargeWeightsMeZO",
    "LeZO",
    "MeZO",
    "MeZOAdam",
    "MeZOAdamReplayed",
    "MeZOMomentum",
    "MeZOMomentumReplayed",
    "OnePointMeZO",
    "OneSidedMeZO",
    "RMeZO",
    "SparseMeZO",
    "SubZero",
    "ZOBlockWise",
    "ZOConservative",
    "ZOSign",
]
