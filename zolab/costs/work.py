"""Tokens, seconds and bytes on disk of a cell, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zolab.costs.memory import (
    BYTES,
    Cell,
    is_first_order,
    is_untrained,
    memory_of,
    method_of,
    trained_weights,
)
from zolab.costs.shapes import Shape
from zolab.tracking.schema import BACKPROP_FORWARDS

#: Useful floating-point operations per second where nothing was measured.
DEFAULT_FLOPS = 1.5e14
FLOPS_SOURCE = "48 % of the 312 TFLOP/s that the data sheet of an A100 names for bfloat16"

#: Tokens of a row with its answer: mean over rows of the data sets, 4.4 characters a token.
_TOKENS = {
    "sst2": 19, "sst5": 25, "rte": 87, "cb": 90, "boolq": 147, "wsc": 49, "wsc_54": 49,
    "wic": 38, "multirc": 372, "copa": 16, "record": 266, "squad": 206, "drop": 300, "snli": 25,
    "mnli": 40, "trec": 11, "uci_sent": 24, "mr": 30, "cr": 28, "subj": 32, "clinc10": 12,
}  # fmt: skip
_OTHER_TOKENS = 128
#: Bytes that a journal row, a row of metrics and its mirror leave.
_JOURNAL_ROW, _METRICS_ROW = 100, 800


@dataclass(frozen=True)
class Work:
    """What a cell computes.

    Attributes:
        forwards: forward passes on a training batch, as tables count them.
        tokens: tokens read, evaluations included.
    """

    forwards: float
    tokens: float

    def hours(self, tokens_per_second: float) -> float:
        """At a rate of forward passes."""
        return self.tokens / tokens_per_second / 3600.0


def tokens_of(cell: Cell) -> tuple[int, bool]:
    """Mean tokens of a row, and whether that is known of the task rather than assumed."""
    name = cell["task"]["name"]
    tokens = _TOKENS.get(name, _OTHER_TOKENS)
    limit = cell["task"].get("max_length")
    return (min(tokens, limit) if limit else tokens), name in _TOKENS


def work_of(cell: Cell, tokens: int) -> Work:
    """Forward passes and tokens of a whole cell.

    Args:
        cell: checked config.
        tokens: of a row.
    """
    train, task = cell["train"], cell["task"]
    method = method_of(cell)
    steps = 0 if is_untrained(cell) else train["steps"]
    forwards = steps * forwards_per_step(cell)
    looks = 1 + -(-steps // train["eval_every"])
    rows = looks * task.get("num_dev", 0) + task.get("num_test", 0)
    if method == "ICL":
        tokens_looked_at = tokens * (1 + cell["optimizer"]["num_demonstrations"])
    else:
        tokens_looked_at = tokens
    if method == "LinearProbing":
        rows += task.get("num_train", 0)
    return Work(forwards, forwards * train["batch_size"] * tokens + rows * tokens_looked_at)


def forwards_per_step(cell: Cell) -> float:
    """Forward passes a step, as tables count them (of a schedule: on average)."""
    if is_first_order(cell):
        return BACKPROP_FORWARDS
    method = method_of(cell)
    special = {"MeZOSVRG": 4.0, "Conservative": 5.0, "ForwardGrad": 1.0}
    if method in special:
        return special[method]
    estimator: Mapping[str, Any] = cell["optimizer"].get("estimator", {})
    name = estimator.get("_target_", "").rpartition(".")[2]
    probes = estimator.get("num_probes", 1)
    if estimator.get("schedule") == "linear":
        probes = (probes + 1) / 2
    if name == "OnePoint":
        return 1.0
    return probes + 1.0 if name == "OneSided" else 2.0 * probes


def disk_of(cell: Cell, shape: Shape, tokens: int) -> tuple[int, int]:
    """Bytes in the run directory: at most while it runs, and for good."""
    train = cell["train"]
    steps = train["steps"]
    size = BYTES[cell["model"]["dtype"]]
    rows = (steps // train["log_every"] + 1) * _METRICS_ROW
    first = is_first_order(cell)
    if is_untrained(cell):
        return _METRICS_ROW, _METRICS_ROW
    weights = trained_weights(cell, shape) * size
    kept = rows + (weights if first else steps * _JOURNAL_ROW)
    if cell["model"]["init"] == "random":
        kept += shape.parameters * size
    # the newest weights with their state, and the best ones
    running = rows + steps * _JOURNAL_ROW + 2 * weights + memory_of(cell, shape, tokens).state
    return max(running, kept), kept
