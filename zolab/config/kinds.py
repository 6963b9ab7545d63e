"""Whether a model is of the kind that a cell takes it for, told from its config.json. No torch."""

from __future__ import annotations

from typing import Any

from zolab.errors import UserError

#: Ends of class names in the `architectures` of a config.json.
_MARKS = {"causal": ("ForCausalLM", "LMHeadModel"), "masked": ("ForMaskedLM", "ForPreTraining")}
#: Model types that are trained with masks alone: as causal models they would read what they are to
#: predict.
_MASKED_ONLY = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert",
     "roberta", "xlm-roberta"}
)  # fmt: skip


def look_over_kind(model: dict[str, Any], stored: dict[str, Any] | None) -> None:
    """Refuse a masked model taken for a causal one, or the other way round.

    Args:
        model: checked `model` section.
        stored: the model's config.json, if it is at hand; else `model.shape` tells its type.

    Raises:
        UserError: the model is of the other kind.
    """
    shape = stored or model["shape"]
    kind, model_type = model["kind"], shape.get("model_type")
    other = "masked" if kind == "causal" else "causal"
    if not model_type or "auto_map" in shape:
        return
    classes = [str(name) for name in shape.get("architectures") or ()]
    fits = any(name.endswith(_MARKS[kind]) for name in classes)
    is_other = any(name.endswith(_MARKS[other]) for name in classes) and not fits
    if kind == "causal":
        wrong = is_other or model_type in _MASKED_ONLY
        wrong = wrong and not shape.get("is_decoder")
    else:
        wrong = is_other and model_type not in _MASKED_ONLY
    if wrong:
        article = "a masked" if other == "masked" else "a causal"
        raise UserError(
            f"model.kind = {kind!r}: {model['path']} ({model_type}) is {article} model; "
            f"use model.kind={other}"
        )
