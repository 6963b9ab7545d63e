"""Tiny models and closures for the optimizer tests."""

from __future__ import annotations

import functools
from types import SimpleNamespace

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


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.fc2(self.fc1(self.norm(x + self.mix(seen))).relu())


class SmallLM(nn.Module):
    """A causal language model without attention and a tied head, ten times as fast as `opt`.

    Its parameters are named as laws about layers, embeddings and final norms expect.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList([_Layer(width), _Layer(width)])
        self.final_layer_norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCAB, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        for name, p in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(p, std=0.1 if "embed" in name else 0.25, generator=generator)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return SimpleNamespace(logits=self.lm_head(self.final_layer_norm(x)))


def small_lm() -> nn.Module:
    """Always the same weights."""
    return SmallLM().eval()


def lm_closure(model: nn.Module, ids: torch.Tensor | None = None, tensors: bool = False):
    """Next-token loss in float32, one per copy of the batch: numbers, or tensors."""
    ids = tokens() if ids is None else ids

    def closure(copies: int = 1) -> list[float]:
        logits = model(input_ids=ids.repeat(copies, 1), use_cache=False).logits.float()
        losses = [
            F.cross_entropy(part[:, :-1].reshape(-1, part.shape[-1]), ids[:, 1:].reshape(-1))
            for part in logits.chunk(copies)
        ]
        return losses if tensors else [loss.item() for loss in losses]

    return closure


def bits(model: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters as raw bits, so that -0.0 and 0.0 differ."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [p.detach().clone().view(kind[p.element_size()]) for p in model.parameters()]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
