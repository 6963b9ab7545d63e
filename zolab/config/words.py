"""Label words as a model's tokenizer sees them, looked over while planning. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zolab import assets
from zolab.config import hub
from zolab.config.forms import MASKED, protocol_of
from zolab.errors import UserError


def look_over_words(cell: dict[str, Any]) -> None:
    """Refuse label words that the model cannot tell apart, or that are no word of a masked model.

    A run asks the same again of the tokenizer as it loads it; here only tokenizers with a
    `tokenizer.json` at hand are asked, so that planning needs no network.

    Args:
        cell: checked config.

    Raises:
        UserError: names the key, the word and its tokens.
    """
    key, words = _label_words(cell)
    file = _tokenizer_file(cell["model"])
    if not words or file is None:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # a broken file is told of by what loads it, with the model's name
        return
    first: dict[tuple[int, ...], str] = {}
    for word in words:
        found = tokenizer.encode(word, add_special_tokens=False)
        if protocol_of(cell) == MASKED and len(found.ids) != 1:
            pieces = " + ".join(map(repr, found.tokens))
            raise UserError(
                f"{key}: {word!r} is {len(found.ids)} tokens of model.path = "
                f"{cell['model']['path']!r} ({pieces}); under a mask a label word must be one"
            )
        other = first.setdefault(tuple(found.ids), word)
        if other != word:
            raise UserError(
                f"{key}: {other!r} and {word!r} have the same tokens in model.path = "
                f"{cell['model']['path']!r}, which cannot tell them apart"
            )


def _label_words(cell: dict[str, Any]) -> tuple[str, list[str]]:
    task = cell["task"]
    if protocol_of(cell) == MASKED and (task.get("masked") or {}).get("label_words"):
        return "task.masked.label_words", task["masked"]["label_words"]
    return "task.label_words", task.get("label_words") or []


def _tokenizer_file(model: dict[str, Any]) -> Path | None:
    folder = assets.locate_model(model["path"])
    if folder is None:
        return hub.cached_file(model, "tokenizer.json")
    file = folder / "tokenizer.json"
    return file if file.is_file() else None
