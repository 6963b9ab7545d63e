"""What to do with a gradient estimate: one file a rule."""

from zolab.optim.rules.adam import Adam
from zolab.optim.rules.helene import Helene
from zolab.optim.rules.lozo import FactorMomentum
from zolab.optim.rules.momentum import Momentum
from zolab.optim.rules.sgd import Rule, Sgd
from zolab.optim.rules.sign import Sign

__all__ = ["Adam", "FactorMomentum", "Helene", "Momentum", "Rule", "Sgd", "Sign"]
