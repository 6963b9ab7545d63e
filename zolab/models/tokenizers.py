"""Tokenizers as the scoring of candidates needs them: what stands before a text, and padding.

Tokenizers of one family differ between releases in whether they put the begin-of-text token before
a text, and some put an end token behind it; models are sensitive to both. So what a tokenizer does
is looked at, compared with how its model was trained, and set right.
"""

from __future__ import annotations

from typing import Any

from zolab.errors import UserError, first_line, nearest

#: Model types trained with a begin-of-text token before every text. Others get what their
#: tokenizer gives: nothing (GPT-2, GPT-NeoX, Qwen, Phi) or the frame of a masked model.
WITH_BOS = frozenset({"opt", "llama", "mistral", "mixtral"})
#: The same for all releases of a family.
WITH_BOS_PREFIXES = ("gemma",)


def load_tokenizer(source: str, path: str, revision: str | None = None) -> Any:
    """The tokenizer beside a model.

    Args:
        source: folder or hub name.
        path: `model.path` of the cell, for messages.
        revision: of a hub model.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path = {path!r}: no tokenizer: {first_line(error)}") from error


def settle_tokenizer(
    tokenizer: Any, model_type: str, kind: str, num_rows: int, bos: str = "auto"
) -> None:
    """Set what stands before and behind a text, and a token to pad with.

    Args:
        tokenizer: of transformers; changed in place, so that it is also saved like this.
        model_type: of the model's config.
        kind: "causal" or "masked".
        num_rows: of the model's embedding; a padding token beyond it (some tokenizers add one that
            their model never had) is replaced.
        bos: `model.bos`: auto, never, or the text of a token.

    Raises:
        UserError: `bos` is no token of the tokenizer; a masked model's tokenizer has no mask; the
            tokenizer does not do what the family needs and cannot be told to.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= num_rows:
        # Padding is never attended to nor scored; this only has to be some token.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or _first(tokenizer)
    if kind == "masked":
        if tokenizer.mask_token_id is None:
            raise UserError(
                "model.kind = 'masked': the tokenizer has no mask token; use model.kind=causal"
            )
        if bos != "auto":
            raise UserError(
                f"model.bos = {bos!r}: a masked model keeps the frame of its tokenizer; use auto"
            )
        return
    before, behind = frame(tokenizer)
    wanted = _wanted(tokenizer, model_type, bos, before)
    if before != wanted or behind:
        _put_before(tokenizer, wanted)
        if frame(tokenizer) != (wanted, []):
            raise UserError(
                f"model.bos = {bos!r}: {type(tokenizer).__name__} puts {before or 'nothing'} "
                f"before a text and {behind or 'nothing'} behind it, and cannot be told otherwise"
            )


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids that a tokenizer puts before and behind a text."""
    whole = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, []


def _wanted(tokenizer: Any, model_type: str, bos: str, before: list[int]) -> list[int]:
    if bos == "never":
        return []
    if bos == "auto":
        needed = model_type in WITH_BOS or model_type.startswith(WITH_BOS_PREFIXES)
        known = tokenizer.bos_token_id is not None
        return [tokenizer.bos_token_id] if needed and known else before
    known = tokenizer.get_vocab()
    if bos not in known:
        special = [str(token) for token in tokenizer.all_special_tokens]
        raise UserError(
            f"model.bos = {bos!r}: expected auto, never or a token of the tokenizer, such as "
            f"{', '.join(special) or 'none: it has no special token'}{nearest(bos, special)}"
        )
    return [known[bos]]


def _put_before(tokenizer: Any, ids: list[int]) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    tokens = tokenizer.convert_ids_to_tokens(ids)
    names = list(dict.fromkeys(zip(tokens, ids, strict=True)))
    backend.post_processor = TemplateProcessing(
        single=" ".join([*tokens, "$A"]),
        pair=" ".join([*tokens, "$A", "$B:1"]),
        special_tokens=names,
    )


def _first(tokenizer: Any) -> str:
    return tokenizer.convert_ids_to_tokens(0)
