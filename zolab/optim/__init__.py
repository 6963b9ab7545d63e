"""Zeroth-order optimizers from composable parts; needs only torch.

from zolab.optim import MeZO
optimizer = MeZO(model.named_parameters(), lr=1e-6, seed=0)
for batch in data:
    loss = optimizer.step(lambda copies: [loss_of(model, batch)])
optimizer.flush()
"""

from zolab.optim.directions import Direction, Gaussian, Rademacher
from zolab.optim.estimators import OnePoint, OneSided, TwoSided
from zolab.optim.late import Late
from zolab.optim.low_rank import LazyLowRank, LowRank, Subspace
from zolab.optim.masks import Dense, LargeWeights, LayerMask, RandomMask, SmallWeights
from zolab.optim.methods import (
    LOZO,
    LOZOM,
    NSPSA,
    AdaZetaQueries,
    ForwardGradient,
    HeleneReconstructed,
    LargeWeightsMeZO,
    LeZO,
    MeZO,
    MeZOAdam,
    MeZOAdamReplayed,
    MeZOMomentum,
    MeZOMomentumReplayed,
    OnePointMeZO,
    OneSidedMeZO,
    RMeZO,
    SparseMeZO,
    SubZero,
    ZOBlockWise,
    ZOConservative,
    ZOSign,
)
from zolab.optim.placements import InPlace, Offload, Paired, PerLayer
from zolab.optim.reference import Reference
from zolab.optim.rules import Adam, FactorMomentum, Helene, Momentum, Sgd, Sign
from zolab.optim.special.block_wise import BlockWise
from zolab.optim.special.conservative import Conservative
from zolab.optim.special.forward_grad import ForwardGrad
from zolab.optim.special.svrg import MeZOSVRG
from zolab.optim.zero_order import NUMERICS, StepRecord, ZeroOrder

__all__ = [
    "LOZO",
    "LOZOM",
    "NSPSA",
    "NUMERICS",
    "AdaZetaQueries",
    "Adam",
    "BlockWise",
    "Conservative",
    "Dense",
    "Direction",
    "FactorMomentum",
    "ForwardGrad",
    "ForwardGradient",
    "Gaussian",
    "Helene",
    "HeleneReconstructed",
    "InPlace",
    "LargeWeights",
    "LargeWeightsMeZO",
    "Late",
    "LayerMask",
    "LazyLowRank",
    "LeZO",
    "LowRank",
    "MeZO",
    "MeZOAdam",
    "MeZOAdamReplayed",
    "MeZOMomentum",
    "MeZOMomentumReplayed",
    "MeZOSVRG",
    "Momentum",
    "Offload",
    "OnePoint",
    "OnePointMeZO",
    "OneSided",
    "OneSidedMeZO",
    "Paired",
    "PerLayer",
    "RMeZO",
    "Rademacher",
    "RandomMask",
    "Reference",
    "Sgd",
    "Sign",
    "SmallWeights",
    "SparseMeZO",
    "StepRecord",
    "SubZero",
    "Subspace",
    "TwoSided",
    "ZOBlockWise",
    "ZOConservative",
    "ZOSign",
    "ZeroOrder",
]
