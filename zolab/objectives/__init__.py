"""Examples to losses: tokens, scored positions, log-probabilities of the candidates."""

from zolab.objectives.batch import PAD_UNIT, Batch, collate
from zolab.objectives.encode import Candidate, Encoded, Encoder, MaskedEncoder
from zolab.objectives.loss import (
    ACCURACY,
    LM,
    OPTIONS,
    BatchLoss,
    LanguageModel,
    NegativeAccuracy,
    Objective,
    Options,
    correct,
)
from zolab.objectives.scorers import CausalScorer, MaskedScorer, Scorer

__all__ = [
    "ACCURACY",
    "LM",
    "OPTIONS",
    "PAD_UNIT",
    "Batch",
    "BatchLoss",
    "Candidate",
    "CausalScorer",
    "Encoded",
    "Encoder",
    "LanguageModel",
    "MaskedEncoder",
    "MaskedScorer",
    "NegativeAccuracy",
    "Objective",
    "Options",
    "Scorer",
    "collate",
    "correct",
]
