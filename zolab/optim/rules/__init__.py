"""What to do with a gradient estimate: one file a rule."""

from zolab.optim.rules.momentum import Momentum
from zolab.optim.rules.sgd import Rule, Sgd

__all__ = ["Momentum", "Rule", "Sgd"]
