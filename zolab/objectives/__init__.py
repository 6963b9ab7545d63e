"""Examples to losses: tokens, scored positions, log-probabilities of the candidates."""

from zolab.objectives.batch import PAD_UNIT, Batch, Prompts, collate
from zolab.objectives.encode import Candidate, Encoded, Encoder, MaskedEncoder
from zolab.objectives.generate import Generator
from zolab.objectives.loss import (
    ACCURACY,
    LIKELIHOODS,
    LM,
    OPTIONS,
    BatchLoss,
    LanguageModel,
    NegativeAccuracy,
    NegativeF1,
    Objective,
    Options,
    correct,
    label_nll,
)
from zolab.objectives.metrics import best_f1
from zolab.objectives.scorers import CausalScorer, MaskedScorer, Scorer

__all__ = [
    "ACCURACY",
    "LIKELIHOODS",
    "LM",
    "OPTIONS",
    "PAD_UNIT",
    "Batch",
    "BatchLoss",
    "Candidate",
    "CausalScorer",
    "Encoded",
    "Encoder",
    "Generator",
    "LanguageModel",
    "MaskedEncoder",
    "MaskedScorer",
    "NegativeAccuracy",
    "NegativeF1",
    "Objective",
    "Options",
    "Prompts",
    "Scorer",
    "best_f1",
    "collate",
    "correct",
    "label_nll",
]
