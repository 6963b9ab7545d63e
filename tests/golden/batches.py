"""The closed-form batches of a trace and its losses, from logits in the dtype of the model."""

from __future__ import annotations

import collections
import string
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.trace import Trace

PAD, MASK_TOKEN, NEW_TOKENS, STOPS = 1, 3, 5, (2, 3)


def loss_of(
    trace: Trace, model: nn.Module, step: int, decoded: list[str]
) -> Callable[[int], list[Tensor]]:
    """The closure of one step (from 0); F1 objectives append what they generate to `decoded`."""
    ids, mask = tokens(trace, step)

    def closure(copies: int = 1) -> list[Tensor]:
        if trace.objective == "f1":
            if copies != 1:
                raise ValueError("generated text is scored one sign at a time")
            return [_f1_loss(trace, model, ids, trace.golds[step], decoded)]
        logits = _logits(model, ids.repeat(copies, 1), mask.repeat(copies, 1)).chunk(copies)
        return [_LOSSES[trace.kind](trace, Given(part), ids, mask, step) for part in logits]

    return closure


@dataclass(frozen=True)
class Given:
    """Stands for a model whose logits are known."""

    logits: Tensor

    def __call__(self, **inputs: object) -> Given:
        return self


def tokens(trace: Trace, step: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of a step: int64 (B, T)."""
    b = torch.arange(trace.rows)[:, None]
    t = torch.arange(trace.tokens)[None, :]
    ids = 4 + (7 * b * b + 3 * t * t + 11 * b * t + 13 * step + 5 * t + b) % 120
    mask = torch.ones_like(ids)
    if trace.kind in ("option", "cls"):
        mask = (t >= b).long()
    elif trace.kind == "prompt":
        mask = (t < trace.tokens - b).long()
    ids = torch.where(mask == 0, PAD, ids)
    if trace.kind == "prompt":
        ids[b[:, 0], _mask_columns(trace)] = MASK_TOKEN
    return ids, mask


def _mask_columns(trace: Trace) -> Tensor:
    return trace.tokens - 7 + torch.arange(trace.rows) % 3


def _logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _scored(trace: Trace) -> Tensor:
    """Where a token is scored: bool (B, T - 1) over positions that predict the next one."""
    count = 1 + torch.arange(trace.rows) % 3
    target = torch.arange(1, trace.tokens)
    return target[None, :] >= trace.tokens - count[:, None]


def _lm(trace: Trace, model: nn.Module, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    logits = _logits(model, ids, mask)[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def _option(trace: Trace, model: nn.Module, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    logits = _logits(model, ids, mask)[:, :-1]
    labels = torch.where(_scored(trace), ids[:, 1:], -100)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def _cls(trace: Trace, model: nn.Module, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    log_probs = F.log_softmax(_logits(model, ids, mask)[:, :-1], dim=-1)
    chosen = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    scored = _scored(trace)
    scores = (chosen * scored).sum(-1) / scored.sum(-1)
    gold = (step + torch.arange(trace.rows // 2)) % 2
    return F.cross_entropy(scores.view(-1, 2), gold)


def _prompt(trace: Trace, model: nn.Module, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    rows = torch.arange(trace.rows)
    at_mask = _logits(model, ids, mask)[rows, _mask_columns(trace)]
    logits = at_mask[:, trace.label_words]
    labels = (step + rows) % len(trace.label_words)
    if trace.objective == "accuracy":
        return -((logits.argmax(-1) == labels).sum() / trace.rows)
    return F.cross_entropy(logits, labels)


def _seqcls(trace: Trace, model: nn.Module, ids: Tensor, mask: Tensor, step: int) -> Tensor:
    labels = (step + torch.arange(trace.rows)) % 2
    return F.cross_entropy(_logits(model, ids, mask), labels)


_LOSSES = {"lm": _lm, "option": _option, "cls": _cls, "prompt": _prompt, "seqcls": _seqcls}


# -- the F1 objective ---------------------------------------------------------------------------


def _f1_loss(
    trace: Trace, model: nn.Module, ids: Tensor, golds: list[list[str]], decoded: list[str]
) -> Tensor:
    texts = _generate(model, ids)
    decoded += texts
    scores = [
        max(_token_f1(text, gold) for gold in answers)
        for text, answers in zip(texts, golds, strict=True)
    ]
    return torch.tensor(-sum(scores) / len(scores), dtype=torch.float32)


def _generate(model: nn.Module, ids: Tensor) -> list[str]:
    """Greedy decoding, without a cache: (B, T) ids to one text of new ids a row."""
    ended = torch.zeros(len(ids), dtype=torch.bool)
    whole = ids
    for _ in range(NEW_TOKENS):
        logits = _logits(model, whole, torch.ones_like(whole))
        new = torch.where(ended, PAD, logits[:, -1].argmax(-1))
        whole = torch.cat((whole, new[:, None]), dim=1)
        ended |= torch.isin(new, torch.tensor(STOPS))
        if bool(ended.all()):
            break
    rows = whole[:, ids.shape[1] :].tolist()
    return [" ".join(str(i) for i in row if i not in (0, PAD, *STOPS)) for row in rows]


def _words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no articles."""
    text = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return [word for word in text.split() if word not in ("a", "an", "the")]


def _token_f1(text: str, gold: str) -> float:
    found, wanted = _words(text), _words(gold)
    same = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall)
