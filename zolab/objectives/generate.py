"""Greedy decoding of short answers, in batches, with a key-value cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from zolab.objectives.batch import Prompts
from zolab.objectives.scorers import Scorer


class Generator:
    """Goes on from a prompt with the likeliest token until the line or the text ends.

    Several copies of the batch decode at once, each under the weights of its rows, so that every
    placement can evaluate what depends on the decoded text.

    Args:
        tokenizer: of transformers.
        max_new_tokens: longest answer in tokens.
    """

    def __init__(self, tokenizer: Any, max_new_tokens: int = 50) -> None:
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self._stops: dict[int, bool] = {}

    @torch.inference_mode()
    def texts(self, scorer: Scorer, prompts: Prompts, copies: int = 1) -> list[list[str | None]]:
        """The answers, without the end of the line.

        Args:
            scorer: the model.
            prompts: of the examples.
            copies: the rows are repeated so many times along dimension 0.

        Returns:
            One list for each copy; None for an answer whose logits were not finite.
        """
        rows = len(prompts.input_ids) * copies
        answers: list[list[int]] = [[] for _ in range(rows)]
        broken = torch.zeros(rows, dtype=torch.bool, device=scorer.device)
        going = [True] * rows
        state = _State(scorer, prompts, copies)
        for _ in range(self.max_new_tokens):
            logits = state.next_logits()
            broken |= ~logits.isfinite().all(dim=-1)
            tokens = logits.argmax(dim=-1)
            for row, token in enumerate(tokens.tolist()):
                if going[row]:
                    going[row] = not self._ends(token)
                    answers[row].append(token)
            if not any(going):
                break
            state.append(tokens)
        texts = [
            None if bad else self._text(answer)
            for answer, bad in zip(answers, broken.tolist(), strict=True)
        ]
        size = rows // copies
        return [texts[i * size : (i + 1) * size] for i in range(copies)]

    def _ends(self, token: int) -> bool:
        """Whether a token ends the text or holds the end of a line, as merged tokens may."""
        if token not in self._stops:
            ends = token == self.tokenizer.eos_token_id
            self._stops[token] = ends or "\n" in self.tokenizer.decode([token])
        return self._stops[token]

    def _text(self, answer: list[int]) -> str:
        return self.tokenizer.decode(answer, skip_special_tokens=True).split("\n")[0].strip()


class _State:
    """The rows decoded so far and the model's memory of them."""

    def __init__(self, scorer: Scorer, prompts: Prompts, copies: int) -> None:
        self.scorer = scorer
        self.new = prompts.input_ids.repeat(copies, 1)
        self.mask = prompts.attention_mask.repeat(copies, 1)
        self.cache: Any = None
        self._with_positions = _takes(scorer.model, "position_ids")

    def next_logits(self) -> Tensor:
        """Logits (rows, vocabulary) at the last token of each row."""
        rows, length = self.new.shape
        last = torch.arange(1, rows + 1, device=self.new.device) * length - 1
        inputs: dict[str, Any] = {"input_ids": self.new, "attention_mask": self.mask}
        if self._with_positions:
            # Counted from each row's first token: padding on the left takes no position.
            inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        out = self.scorer.forward(last, **inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits.view(rows, -1).float()

    def append(self, tokens: Tensor) -> None:
        """Only the new tokens are read next; the cache stands for the rest."""
        self.new = tokens[:, None]
        self.mask = torch.cat((self.mask, torch.ones_like(self.new)), dim=1)


def _takes(model: nn.Module, name: str) -> bool:
    """Whether a model's forward has an argument of this name; adapters pass theirs on."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(type(base).forward).parameters
