"""zolab: zeroth-order fine-tuning experiments, from a grid to its tables."""

__version__ = "0.1.0"
