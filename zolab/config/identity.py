"""What names a cell: the settings that decide its numbers, and the files behind them. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zolab.config.check import without_later_keys
from zolab.config.contents import contents, uses_shape
from zolab.config.forms import CAUSAL, protocol_of

#: Raised when the meaning of a config changes, so that old runs are not taken for new ones.
IDENTITY_FORMAT = 1
_SECTIONS = ("model", "task", "optimizer", "sparsity", "train", "seed")
#: Where things lie and run, and how often a run is looked at: they change none of its numbers.
_NOT_COUNTED = {
    "model": ("device", "device_map", "path"),
    "task": ("path", "hub"),
    "train": ("log_every", "checkpoint_minutes", "eval_batch_size", "share", "agree_every"),
}


def identity(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checked cell that decides its numbers, without what lies behind its paths.

    Keys that a later version added (`since` in the schema) are left out while they are at their
    default: a cell made before them has the same identity as one made now. So is what a task says
    for masked models where the model is causal.
    """
    sections = {name: without_later_keys(dict(cell), name) for name in _SECTIONS}
    if protocol_of(dict(cell)) == CAUSAL:
        sections["task"].pop("masked", None)
    if not uses_shape(cell["model"]):
        sections["model"].pop("shape", None)  # what it would say stands in the model's own config
    for name, keys in _NOT_COUNTED.items():
        sections[name] = {key: v for key, v in sections[name].items() if key not in keys}
    return {"format": IDENTITY_FORMAT, **sections}


def run_id(cell: Mapping[str, Any]) -> str:
    """16 hex digits that name a checked cell: same settings and same file contents, same id.

    Paths, devices, tracking, launcher, sweep and the cadence of logs and checkpoints do not count.

    Raises:
        UserError: a data or model file is missing or unreadable.
    """
    whole = {**identity(cell), "contents": contents(dict(cell))}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
