"""Settings that are each valid but do not go together: one small function and sentence each."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

Cell = dict[str, Any]


def _micro_batch(cell: Cell) -> str | None:
    micro, batch = cell["train"]["micro_batch_size"], cell["train"]["batch_size"]
    if micro is not None and micro > batch:
        return (
            f"train.micro_batch_size = {micro}: expected at most train.batch_size = {batch}, "
            "since a micro-batch is a piece of a batch"
        )
    return None


def _mask_needs_zeroth_order(cell: Cell) -> str | None:
    target, mask = cell["optimizer"]["_target_"], cell["sparsity"]
    baselines = ("zolab.baselines.AdamW", "zolab.baselines.ZeroShot")
    if target in baselines and mask["_target_"] != "zolab.optim.Dense":
        return (
            f"sparsity = {mask.get('name', mask['_target_'])}: optimizer "
            f"{cell['optimizer']['name']} has no masked form; use sparsity=none with it"
        )
    return None


def _template(cell: Cell) -> str | None:
    template = cell["task"].get("template")
    if template is None:
        return None
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        return f"task.template = {template!r}: expected fields such as {{sentence}} ({error})"
    if not fields or not all(name.isidentifier() for name in fields):
        return (
            f"task.template = {template!r}: expected at least one field of the data in braces, "
            "such as {sentence}"
        )
    return None


def _label_words(cell: Cell) -> str | None:
    words = cell["task"].get("label_words")
    if words is None:
        return None
    if len(words) < 2 or len(set(words)) != len(words):
        return f"task.label_words = {words!r}: expected at least two different words"
    return None


def _online(cell: Cell) -> str | None:
    tracking = cell["tracking"]
    if tracking["mode"] == "online" and not tracking["wandb"]:
        return "tracking.mode = 'online': tracking.wandb is false, so nothing would go online"
    return None


def _grid(cell: Cell) -> str | None:
    for number, block in enumerate(cell["grid"] or []):
        if not isinstance(block, dict) or not block:
            return f"grid[{number}] = {block!r}: expected a mapping from override to value or list"
    return None


#: Each returns a sentence naming key, value and what is allowed, or None if all is well.
CROSS_CHECKS: tuple[Callable[[Cell], str | None], ...] = (
    _micro_batch,
    _mask_needs_zeroth_order,
    _template,
    _label_words,
    _online,
    _grid,
)
