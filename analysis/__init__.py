"""Reports from the logs of finished runs: convergence, speedup, time and memory.

Reads run folders or the offline `.wandb` files beside them, never a live run and never a model.
From zolab it knows the log schema and the user-error type only.
"""

from __future__ import annotations

#: Where a report can read from; the default first.
SOURCES = ("local", "wandb", "online")
SOURCE_NAMES = {
    "local": "run folders",
    "wandb": "offline wandb files",
    "online": "a wandb project",
}
#: Label of the method that others are compared with unless another is named.
DEFAULT_BASELINE = "mezo"
