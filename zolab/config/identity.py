"""What names a cell: the settings that decide its numbers, and the files behind them. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zolab.config.contents import contents

#: Raised when the meaning of a config changes, so that old runs are not taken for new ones.
IDENTITY_FORMAT = 1
#: Keys of `train` that change no number of a run but how often it is looked at.
_CADENCE = ("log_every", "checkpoint_minutes", "eval_batch_size")


def identity(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checked cell that decides its numbers, without what lies behind its paths."""
    model = {key: value for key, value in cell["model"].items() if key not in ("device", "path")}
    task = {key: value for key, value in cell["task"].items() if key != "path"}
    train = {key: value for key, value in cell["train"].items() if key not in _CADENCE}
    return {
        "format": IDENTITY_FORMAT,
        "model": model,
        "task": task,
        "optimizer": cell["optimizer"],
        "sparsity": cell["sparsity"],
        "train": train,
        "seed": cell["seed"],
    }


def run_id(cell: Mapping[str, Any]) -> str:
    """16 hex digits that name a checked cell: same settings and same file contents, same id.

    Paths, devices, tracking, launcher, sweep and the cadence of logs and checkpoints do not count.

    Raises:
        UserError: a data or model file is missing or unreadable.
    """
    whole = {**identity(cell), "contents": contents(dict(cell))}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
