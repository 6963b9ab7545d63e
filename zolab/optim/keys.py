"""Seeds of probes and orders of examples, as functions of (run seed, step): nothing to save."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim.philox import Stream, philox, words

_SEED_LIMIT = 1 << 64


def probe_seed(run_seed: int, step: int, probe: int) -> int:
    """64-bit Philox key of one probe of one step.

    Args:
        run_seed: seed of the run, 0 <= run_seed < 2**64; 0 is a seed like any other.
        step: step number, from 1.
        probe: index of the direction within the step, from 0.
    """
    if not 0 <= run_seed < _SEED_LIMIT:
        raise ValueError(f"seed = {run_seed}: expected 0 <= seed < 2**64")
    block = torch.tensor([step], dtype=torch.int64)
    low, high, _, _ = philox(block, run_seed, probe, Stream.SEED)
    return int(low) | (int(high) << 32)


def permutation(run_seed: int, epoch: int, size: int) -> Tensor:
    """A random order of `size` items for one epoch, int64 (size,), keyed and not streamed."""
    low = words(0, 2 * size, run_seed, epoch, Stream.ORDER)
    # 63 random bits per item (the sign bit is dropped); stable, so a tie cannot depend on the sort.
    return torch.argsort((low[0::2] << 31) | (low[1::2] >> 1), stable=True)
