"""Zeroth-order optimizers from composable parts; needs only torch.

from zolab.optim import MeZO
optimizer = MeZO(model.named_parameters(), lr=1e-6, seed=0)
for batch in data:
    loss = optimizer.step(lambda copies: [loss_of(model, batch)])
optimizer.flush()
"""

from zolab.optim.directions import Direction, Gaussian, Rademacher
from zolab.optim.estimators import TwoSided
from zolab.optim.masks import Dense, LargeWeights, LayerMask, RandomMask, SmallWeights
from zolab.optim.methods import MeZO, MeZOMomentum, SparseMeZO
from zolab.optim.placements import InPlace, Paired, PerLayer
from zolab.optim.rules import Momentum, Sgd
from zolab.optim.zero_order import NUMERICS, StepRecord, ZeroOrder

__all__ = [
    "NUMERICS",
    "Dense",
    "Direction",
    "Gaussian",
    "InPlace",
    "LargeWeights",
    "LayerMask",
    "MeZO",
    "MeZOMomentum",
    "Momentum",
    "Paired",
    "PerLayer",
    "Rademacher",
    "RandomMask",
    "Sgd",
    "SmallWeights",
    "SparseMeZO",
    "StepRecord",
    "TwoSided",
    "ZeroOrder",
]
