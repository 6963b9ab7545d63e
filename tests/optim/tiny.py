"""Tiny models and closures for the optimizer tests."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

VOCAB, ROWS, TOKENS = 128, 4, 12


def tokens(seed: int = 0) -> torch.Tensor:
    """int64 (ROWS, TOKENS)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCAB, (ROWS, TOKENS), generator=generator)


@functools.cache
def _opt_state() -> tuple:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return config, OPTForCausalLM(config).state_dict()


def opt(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random OPT with tied embeddings, always the same weights."""
    from transformers import OPTForCausalLM

    config, state = _opt_state()
    model = OPTForCausalLM(config)
    model.load_state_dict(state)
    return model.to(dtype).eval()


def lm_closure(model: nn.Module, ids: torch.Tensor | None = None):
    """Next-token loss in float32, one per copy of the batch."""
    ids = tokens() if ids is None else ids

    def closure(copies: int = 1) -> list[float]:
        logits = model(input_ids=ids.repeat(copies, 1), use_cache=False).logits.float()
        return [
            F.cross_entropy(part[:, :-1].reshape(-1, part.shape[-1]), ids[:, 1:].reshape(-1)).item()
            for part in logits.chunk(copies)
        ]

    return closure


def bits(model: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters as raw bits, so that -0.0 and 0.0 differ."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [p.detach().clone().view(kind[p.element_size()]) for p in model.parameters()]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
