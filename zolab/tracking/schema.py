"""Names, units and meaning of everything a run logs: the only thing analysis knows about zolab.

Standard library only, so that reports and launchers can read it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1

#: Forward passes counted for one back-propagation step (1 forward + a backward of about 2).
#: Printed under every table that compares first-order with zeroth-order runs.
BACKPROP_FORWARDS = 3


@dataclass(frozen=True)
class Column:
    """One key of a metrics row.

    Attributes:
        unit: unit of the value, "" for a pure number.
        meaning: one sentence for tables and docs.
        measured: True when the value depends on the machine and moment (time, memory, host); such
            columns are exempt from "a resumed run equals an undisturbed one".
    """

    unit: str
    meaning: str
    measured: bool = False


COLUMNS: dict[str, Column] = {
    "step": Column("steps", "updates done when the row was written; 0 is before training"),
    "forwards_total": Column("forwards", "forward passes on a mini-batch since step 0"),
    "examples_total": Column("examples", "training examples seen since step 0"),
    "tokens_total": Column("tokens", "tokens read by the forward passes since step 0, no padding"),
    # Minus a share between 0 and 1 where train.objective is accuracy or f1.
    "train/loss": Column("nats", "objective the method reports for the step's mini-batch"),
    "train/loss_plus": Column("nats", "objective at theta + eps z, first probe"),
    "train/loss_minus": Column("nats", "objective at theta - eps z, first probe"),
    "train/lr": Column("", "learning rate of the step"),
    "zo/projected_grad": Column("", "(L+ - L-) / (2 eps), first probe"),
    "zo/zero_share": Column("", "share of steps so far whose coefficients were all exactly 0"),
    "zo/zero_coefficient_share": Column(
        "", "share of coefficients so far, over all probes, that were exactly 0"
    ),
    "zo/nonfinite_total": Column("steps", "steps so far that were skipped for a non-finite loss"),
    "zo/moved_share": Column("", "share of a sample of weights that differ from the start's"),
    "model/num_params": Column("", "weights of the model, in the first row"),
    "model/weight_rms": Column("", "root mean square of the weights at the start, first row"),
    "dev/loss": Column("nats", "mean loss over the dev set"),
    "dev/accuracy": Column("", "share of dev examples answered correctly, 0 to 1"),
    "dev/f1": Column("", "mean token F1 of the answers generated for the dev set, 0 to 1"),
    "test/loss": Column("nats", "mean loss over the test set at the best dev point"),
    "test/accuracy": Column("", "share of test examples answered correctly at the best dev point"),
    "test/f1": Column("", "mean token F1 over the test set at the best dev point"),
    "test/step": Column("steps", "step of the best dev point, where test was read"),
    "train_seconds": Column("s", "training time since step 0, without evaluation", True),
    "gpu_seconds": Column("s", "training time times the number of GPUs used", True),
    "perf/step_seconds": Column("s", "mean time of a step since the last row", True),
    "perf/forward_seconds": Column("s", "mean time of a step's forwards since the last row", True),
    "perf/perturb_seconds": Column(
        "s",
        "mean time of a step to perturb weights; in_place: with the update that waits",
        True,
    ),
    "perf/update_seconds": Column("s", "mean time of a step to apply its update", True),
    "perf/transfer_seconds": Column("s", "mean time of a step in copies between tiers", True),
    "perf/woven_seconds": Column(
        "s", "part of the forwards' time that is perturbing, updating or copying", True
    ),
    "perf/payload_bytes": Column("bytes", "what a process of several sends in a step", True),
    "perf/data_seconds": Column("s", "mean time to make a step's batch since the last row", True),
    "perf/evaluation_seconds": Column("s", "time of the evaluations for this row", True),
    "dev/demonstrations": Column("", "answered examples before a dev question (ICL), mean"),
    "test/demonstrations": Column("", "answered examples before a test question (ICL), mean"),
    "perf/peak_bytes": Column(
        "bytes", "peak memory of the steps: of the process (CUDA: of the allocator)", True
    ),
    "perf/eval_peak_bytes": Column("bytes", "the same of the evaluations", True),
    "perf/base_bytes": Column(
        "bytes", "resident size without weights before the first step (CUDA: 0)", True
    ),
    "time": Column("s", "wall clock, seconds since 1970", True),
    "attempt": Column("", "number of the attempt that wrote the row", True),
}

#: Axes a convergence curve can be drawn over.
AXES = ("step", "forwards_total", "train_seconds", "gpu_seconds")


def is_measured(name: str) -> bool:
    """Whether a column is exempt from exact comparison (see `Column.measured`)."""
    column = COLUMNS.get(name)
    return column is not None and column.measured
