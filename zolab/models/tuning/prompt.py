"""Prompt tuning: trained vectors before the embedded text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.models.tuning.base import TASK_TYPES, Tuning, freeze_base, write_adapter
from zolab.models.tuning.inputs import Inputs, transformer_of


class Prompt(Tuning):
    """m vectors before the embedded text, at the start those of random vocabulary tokens.

    Source: prompt tuning (arXiv 2104.08691), section 2. The transformer's output at their positions
    is cut off, so that whatever reads it finds the text where it was.

    Args:
        num_tokens: m.
        init: "vocabulary" or "random".
    """

    kind = "prompt"
    adapter_format = "peft"
    merges = False

    def __init__(self, num_tokens: int = 10, init: str = "vocabulary") -> None:
        self.num_tokens = self.num_positions = num_tokens
        self.init = init

    def apply(self, model: nn.Module, num_words: int) -> None:
        table = model.get_input_embeddings()
        words = min(num_words, table.weight.shape[0])
        with torch.no_grad():
            vectors = table(torch.randint(words, (self.num_tokens,)).to(table.weight.device))
        vectors = vectors.float().clone()
        if self.init == "random":
            nn.init.normal_(vectors, std=0.02)
        model.add_module("prompt_encoder", PromptEncoder(model, vectors))
        freeze_base(model)

    def save_adapter(self, model: nn.Module, out: Path, base: str, kind: str) -> None:
        vectors = model.get_submodule("prompt_encoder").embedding.weight
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": TASK_TYPES[kind],
            "base_model_name_or_path": base,
            "inference_mode": True,
            "num_virtual_tokens": self.num_tokens,
            "token_dim": vectors.shape[1],
            "num_transformer_submodules": 1,
            "num_layers": model.config.get_text_config().num_hidden_layers,
            "num_attention_heads": model.config.get_text_config().num_attention_heads,
            "prompt_tuning_init": "RANDOM",
        }
        write_adapter(out, config, {"prompt_embeddings": vectors})


class PromptEncoder(nn.Module):
    """Puts vectors before the embedded text of every forward.

    Args:
        model: gets hooks on its transformer.
        vectors: (m, width), float32.
    """

    def __init__(self, model: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors, freeze=False)
        self._inserted = False
        backbone, words = transformer_of(model), model.get_input_embeddings()
        inputs = Inputs(backbone, len(vectors))
        inputs.require("inputs_embeds", "prompt")
        backbone.register_forward_pre_hook(
            lambda _, args, kwargs: ((), self._before(inputs, words, args, kwargs)),
            with_kwargs=True,
        )
        backbone.register_forward_hook(lambda _, args, out: self._behind(out))

    def forward(self, num_rows: int) -> Tensor:
        """The vectors for so many rows, (rows, m, width)."""
        index = torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device)
        return self.embedding(index.expand(num_rows, -1))

    def _before(
        self, inputs: Inputs, words: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        given = inputs.shifted(args, kwargs)
        cache = given.get("past_key_values")
        self._inserted = cache is None or cache.get_seq_length() == 0
        if not self._inserted:  # a later token of a generation: the vectors are in the cache
            return given
        ids = given.pop("input_ids", None)
        text = given.get("inputs_embeds")
        text = words(ids) if text is None else text
        vectors = self(text.shape[0]).to(text.dtype)
        given["inputs_embeds"] = torch.cat((vectors, text), dim=1)
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = F.pad(given["token_type_ids"], (inputs.num_tokens, 0))
        for name in ("position_ids", "cache_position"):
            if given.get(name) is not None:
                before = torch.arange(inputs.num_tokens, device=given[name].device)
                before = before.expand(*given[name].shape[:-1], -1)
                given[name] = torch.cat((before, given[name]), dim=-1)
        return given

    def _behind(self, out: Any) -> Any:
        if not self._inserted:
            return out
        hidden = out[0][:, self.embedding.num_embeddings :]
        if isinstance(out, tuple):
            return (hidden, *out[1:])
        out.last_hidden_state = hidden
        return out
