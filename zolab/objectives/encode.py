"""Examples in tokens: what is read, where candidates are scored, what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zolab.errors import UserError
from zolab.tasks.base import Example


@dataclass(frozen=True)
class Candidate:
    """One answer: where its tokens are predicted.

    Attributes:
        row: token row of the example it lies in.
        positions: index of the hidden state that predicts each token.
        targets: the tokens.
    """

    row: int
    positions: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """An example in tokens; candidates that share a prompt and have one token share a row.

    Attributes:
        rows: token rows, without padding.
        candidates: where each answer is scored.
        label: index of the right candidate, the one trained on.
        truncated: whether something was cut off to make it fit.
        right: indices of all right candidates; empty means (label,).
        prompt: tokens that an answer is generated from; empty where none is.
        answers: gold texts of a generated answer.
    """

    rows: tuple[tuple[int, ...], ...]
    candidates: tuple[Candidate, ...]
    label: int
    truncated: bool
    right: tuple[int, ...] = ()
    prompt: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row) for row in self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows: what one forward reads, without padding."""
        return sum(len(row) for row in self.rows)


#: A row's tokens and the places in it that are scored.
Row = tuple[tuple[int, ...], tuple[int, ...]]


def rows_of(example: Encoded) -> list[Row]:
    """The token rows of an example, each with the places in it that are scored."""
    places: list[set[int]] = [set() for _ in example.rows]
    for candidate in example.candidates:
        places[candidate.row].update(candidate.positions)
    return [(r, tuple(sorted(p))) for r, p in zip(example.rows, places, strict=True)]


class Encoder:
    """Turns examples into tokens for a causal model (MeZO, arXiv 2305.17333, appendix E).

    The tokens of a candidate are those by which prompt + candidate is longer than the prompt. A
    text that is too long is cut on the left, the first special token kept.

    Args:
        tokenizer: of transformers.
        max_length: longest row in tokens.
        max_new_tokens: room that prompts leave for an answer to be generated; 0 for none.
    """

    def __init__(self, tokenizer: Any, max_length: int, max_new_tokens: int = 0) -> None:
        if max_new_tokens and max_new_tokens + 1 >= max_length:
            raise UserError(
                f"task.max_new_tokens = {max_new_tokens}: no room for a prompt, since the model "
                f"takes {max_length} tokens in all (task.max_length)"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, int] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode in order; UserError if a candidate alone does not fit."""
        prompts = self._tokens([e.prompt for e in examples])
        texts = [e.prompt + c for e in examples for c in e.candidates]
        full = iter(self._tokens(texts))
        out = []
        for example, prompt in zip(examples, prompts, strict=True):
            rows = [next(full) for _ in example.candidates]
            out.append(self._encode(example, prompt, rows))
        return out

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Token rows; equal tokens are one object, since candidates repeat long passages."""
        found = self.tokenizer(texts)["input_ids"] if texts else []
        same = self._known.setdefault
        return [[same(token, token) for token in row] for row in found]

    def _encode(self, example: Example, prompt: list[int], full: list[list[int]]) -> Encoded:
        rows: list[tuple[int, ...]] = []
        place: dict[tuple[int, ...], int] = {}
        candidates, truncated = [], False
        for text, ids in zip(example.candidates, full, strict=True):
            count = len(ids) - len(prompt)
            if count < 1:
                raise UserError(f"candidate {text!r} adds no token to its prompt")
            if count + 1 >= self.max_length:
                raise UserError(
                    f"candidate {text[:40]!r} has {count} tokens; the model takes "
                    f"{self.max_length} with its prompt (task.max_length)"
                )
            # The last token is only ever predicted, never read: it need not be in the row.
            row, cut = self._cut(ids[:-1], self.max_length)
            truncated |= cut
            index = place.setdefault(tuple(row), len(rows))
            if index == len(rows):
                rows.append(tuple(row))
            positions = tuple(range(len(row) - count, len(row)))
            candidates.append(Candidate(index, positions, tuple(ids[-count:])))
        keys = [(rows[c.row], c.targets) for c in candidates]
        label, right = example.label, example.right
        if right:
            candidates, label, right = _merged(candidates, keys, label, right)
        else:
            refuse_equal(example, keys)
        start: list[int] = []
        if example.answers:
            start, cut = self._cut(prompt, self.max_length - self.max_new_tokens)
            truncated |= cut
        return Encoded(
            tuple(rows), tuple(candidates), label, truncated, right, tuple(start),
            example.answers,
        )  # fmt: skip

    def _cut(self, ids: list[int], limit: int) -> tuple[list[int], bool]:
        if len(ids) <= limit:
            return ids, False
        if ids[0] in self._special:
            return [ids[0], *ids[len(ids) - limit + 1 :]], True
        return ids[len(ids) - limit :], True


def _merged(
    candidates: list[Candidate], keys: list[object], label: int, right: tuple[int, ...]
) -> tuple[list[Candidate], int, tuple[int, ...]]:
    """One candidate for all that are the same to the model, right if one of them is.

    A row's own candidates may differ in a way that its tokenizer does not see, as two spellings of
    a name do without capitals.
    """
    place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    kept = [candidates[keys.index(key)] for key in place]
    return kept, place[keys[label]], tuple(sorted({place[keys[i]] for i in right}))


def refuse_equal(example: Example, keys: Sequence[object]) -> None:
    """UserError if two candidates of an example are the same to the model."""
    for index, key in enumerate(keys):
        first = keys.index(key)
        if first < index:
            texts = example.candidates[first], example.candidates[index]
            alike = " and ".join(
                repr(text if len(text) <= 60 else text[:57] + "...") for text in texts
            )
            raise UserError(
                f"candidates {alike} have the same tokens: this model's tokenizer cannot tell "
                f"them apart (prompt {example.prompt[-40:]!r})"
            )


class MaskedEncoder:
    """Turns examples into tokens for a masked model: prompt, mask, suffix.

    Each candidate is one token, predicted where the mask stands (LM-BFF, arXiv 2012.15723). A text
    that is too long loses tokens at its end that is farther from the mask; the special tokens at
    both ends stay.

    Args:
        tokenizer: of transformers, with a mask token.
        max_length: longest row in tokens.
        field_length: tokens that `Example.field` keeps, from its beginning; None for all.
    """

    def __init__(self, tokenizer: Any, max_length: int, field_length: int | None = None) -> None:
        if tokenizer.mask_token_id is None:
            raise UserError(
                "model.kind = 'masked': the tokenizer has no mask token; this is a causal model"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.field_length = field_length
        self._special = set(tokenizer.all_special_ids)
        self._words: dict[str, int] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode in order; UserError if a label word is not one token of the model."""
        mask = self.tokenizer.mask_token
        short = [self._shortened(example) for example in examples]
        texts = [f"{e.prompt}{mask}{e.suffix}" for e in short]
        rows = self.tokenizer(texts)["input_ids"] if texts else []
        return [
            self._encode(example, ids, cut is not example)
            for example, cut, ids in zip(examples, short, rows, strict=True)
        ]

    def _shortened(self, example: Example) -> Example:
        """The example itself, or one whose field is cut to `field_length` tokens."""
        if self.field_length is None or not example.field:
            return example
        ids = self.tokenizer(example.field, add_special_tokens=False)["input_ids"]
        if len(ids) <= self.field_length:
            return example
        text = self.tokenizer.decode(
            ids[: self.field_length], clean_up_tokenization_spaces=False
        ).strip()
        prompt, suffix = (
            part.replace(example.field, text, 1) for part in (example.prompt, example.suffix)
        )
        return replace(example, prompt=prompt, suffix=suffix)

    def _encode(self, example: Example, ids: list[int], shortened: bool) -> Encoded:
        if ids.count(self.tokenizer.mask_token_id) != 1:
            raise UserError(
                f"task.masked.template: the text {example.prompt[:40]!r} holds the mask token "
                f"{self.tokenizer.mask_token!r} itself"
            )
        row, place, cut = self._cut(ids)
        targets = [self._word(text) for text in example.candidates]
        refuse_equal(example, targets)
        return Encoded(
            (tuple(row),),
            tuple(Candidate(0, (place,), (token,)) for token in targets),
            example.label,
            cut or shortened,
            example.right,
        )

    def _word(self, text: str) -> int:
        """The one token of a label word."""
        if text not in self._words:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                pieces = " + ".join(map(repr, self.tokenizer.convert_ids_to_tokens(ids)))
                raise UserError(
                    f"task.label_words: {text!r} is {len(ids)} tokens of this model ({pieces}); "
                    "under a mask a label word must be one"
                )
            if ids[0] == self.tokenizer.unk_token_id:
                raise UserError(f"task.label_words: {text!r} is unknown to this model's tokenizer")
            self._words[text] = ids[0]
        return self._words[text]

    def _cut(self, ids: list[int]) -> tuple[list[int], int, bool]:
        """The row, where the mask stands in it, and whether something was cut."""
        place = ids.index(self.tokenizer.mask_token_id)
        surplus = len(ids) - self.max_length
        if surplus <= 0:
            return ids, place, False
        first = 1 if ids[0] in self._special and place > 0 else 0
        last = 1 if ids[-1] in self._special and place < len(ids) - 1 else 0
        left, right = place - first, len(ids) - 1 - place - last
        from_left = max(0, min(left, surplus if left >= right else surplus - right))
        from_right = surplus - from_left
        if from_right > right:
            raise UserError(f"task.max_length = {self.max_length}: too short for a mask")
        end = len(ids) - last
        row = ids[:first] + ids[first + from_left : end - from_right] + ids[end:]
        return row, place - from_left, True
