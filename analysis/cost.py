"""Time per step and peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis import stats
from analysis.curves import PHASES
from analysis.methods import Group, Method
from analysis.stats import Array
from analysis.tables import Table

COLUMNS = (
    "model", "task", "method", "num_runs", "step_seconds", "step_seconds_sd", "forward_share",
    *(f"{phase}_seconds" for phase in PHASES), "train_seconds", "peak_bytes",
    "peak_over_base_bytes", "run_ids",
)  # fmt: skip
_MIB = 1 << 20


def _perf(method: Method, name: str) -> Array:
    """Shape (k,): a run's measure, for the k finished runs that logged it."""
    return np.array([curve.perf[name] for curve in method.done if name in curve.perf])


def _part(method: Method, phase: str) -> Array:
    """Seconds of one part of a step; of a forward without what is woven into it."""
    seconds = f"{phase}_seconds"
    own = [curve.perf for curve in method.done if seconds in curve.perf]
    woven = "woven_seconds" if phase == "forward" else ""
    return np.array([perf[seconds] - perf.get(woven, 0.0) for perf in own])


def csv_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per model, task and method (see `COLUMNS`).

    `step_seconds` is the mean over runs of each run's median step, `forward_share` the share of it
    spent in forward passes (NaN with back-propagation), `<part>_seconds` the same for each part of
    a step that was logged (evaluation: one evaluation on dev; forward: without the perturbing,
    updating and copying that some placements do within it), `train_seconds` the mean over runs,
    `peak_bytes` the largest of all runs, `peak_over_base_bytes` the largest of what each run took
    on top of its process as it was before training without the weights. NaN where nothing was
    logged.
    """
    rows = []
    for group in groups:
        for method in group.methods:
            step, peak = _perf(method, "step_seconds"), _perf(method, "peak_bytes")
            own = [
                curve.perf["peak_bytes"] - curve.perf.get("base_bytes", 0.0)
                for curve in method.done
                if "peak_bytes" in curve.perf
            ]
            rows.append(
                {
                    "model": group.model,
                    "task": group.task,
                    "method": method.label,
                    "num_runs": len(method.done),
                    "step_seconds": stats.mean(step),
                    "step_seconds_sd": stats.sd(step),
                    "forward_share": stats.mean(_perf(method, "forward_share")),
                    **{f"{phase}_seconds": stats.mean(_part(method, phase)) for phase in PHASES},
                    "train_seconds": stats.mean(_perf(method, "train_seconds")),
                    "peak_bytes": float(peak.max()) if peak.size else float("nan"),
                    "peak_over_base_bytes": max(own, default=float("nan")),
                    "run_ids": " ".join(curve.run_id for curve in method.done),
                }
            )
    return rows


def cost_table(group: Group) -> Table:
    """Time per step, share of the forwards in it, training time and peak memory."""
    base = group.baseline
    own = stats.mean(_perf(base, "step_seconds")) if base is not None else float("nan")
    relative = bool(np.isfinite(own)) and own > 0
    headers = ["method", "ms per step", "in forwards", "training, s", "peak MiB"]
    if relative and base is not None:
        headers.insert(2, f"of {base.label}'s")
    rows = []
    for record in csv_rows([group]):
        step = record["step_seconds"]
        sd = record["step_seconds_sd"]
        cells = [
            record["method"],
            _or_dash(step * 1e3, ".1f") + (f" ± {sd * 1e3:.1f}" if np.isfinite(sd) else ""),
            _or_dash(record["forward_share"], ".0%"),
            _or_dash(record["train_seconds"], ",.1f"),
            _or_dash(record["peak_over_base_bytes"] / _MIB, ",.0f"),
        ]
        if relative:
            cells.insert(2, _or_dash(step / own, ".2f"))
        rows.append(cells)
    notes = [
        "Step: median over a run's log rows, then mean ± standard deviation over seeds. “in "
        "forwards”: the share of a step spent in forward passes; “–” with back-propagation, whose "
        "forward and backward passes are timed as one. Peak: largest over the runs "
        "while steps were taken (evaluations, without training): of the allocator on CUDA; on CPU, "
        "of the resident size above that of the process before training, weights counted. All as "
        "measured on the machine at the time."
    ]
    return Table("Time and memory", headers, rows, notes)


def phase_table(group: Group) -> Table | None:
    """Where the time of a step goes; None when no run logged more than its forwards."""
    records = csv_rows([group])
    shown = [
        phase
        for phase in PHASES
        if any(np.isfinite(record[f"{phase}_seconds"]) for record in records)
    ]
    if set(shown) <= {"forward"}:
        return None
    in_step = [phase for phase in shown if phase != "evaluation"]
    rows = []
    for record in records:
        step = record["step_seconds"]
        if not np.isfinite(step):
            continue
        parts = [record[f"{phase}_seconds"] for phase in in_step]
        cells = [record["method"], _or_dash(step * 1e3, ".1f")]
        cells += [_or_dash(part * 1e3, ".2f") for part in parts]
        cells.append(_or_dash((step - float(np.nansum(parts))) * 1e3, ".2f"))
        if "evaluation" in shown:
            cells.append(_or_dash(record["evaluation_seconds"] * 1e3, ",.0f"))
        rows.append(cells)
    headers = ["method", "ms per step", *in_step, "rest"]
    headers += ["one evaluation"] * ("evaluation" in shown)
    notes = [
        "Milliseconds of the process that trains; medians over a run's log rows, then means over "
        "seeds. “forward” is without what is done within it: placements paired, per_layer and "
        "offload perturb weights there. The in-place walk applies an update in the sweep that "
        "perturbs for the next step: that time is under “perturb”. With back-propagation “forward” "
        "holds both passes. On a GPU kernels are put in line, and their time shows where the loss "
        "is waited for. “rest”: what no part accounts for."
    ]
    return Table("Where a step's time goes", headers, rows, notes)


def memory_table(groups: Sequence[Group]) -> Table | None:
    """Peak memory by model and method over all tasks; None when nothing was logged.

    A model's rows are in the order of its size where sizes were logged.
    """
    peaks: dict[tuple[float, str], dict[str, float]] = {}
    for group in groups:
        for method in group.methods:
            sizes, peak = _perf(method, "num_params"), _perf(method, "peak_bytes")
            key = (float(sizes.max()) if sizes.size else float("inf"), group.model)
            mine = peaks.setdefault(key, {})
            if peak.size:
                mine[method.label] = max(mine.get(method.label, 0.0), float(peak.max()))
    rows = []
    for (size, model), methods in sorted(peaks.items()):
        inference = min(
            (methods[m.label] for g in groups for m in g.methods
             if g.model == model and m.zero_shot and m.label in methods),
            default=float("nan"),
        )  # fmt: skip
        for label, peak in methods.items():
            cells = [model, _or_dash(size / 1e6, ",.1f"), label, _or_dash(peak / _MIB, ",.0f")]
            rows.append([*cells, _or_dash(peak / inference, ".2f")])
    if not rows:
        return None
    notes = [
        "Largest peak over all runs and tasks: of the whole process on CPU, of the allocator on "
        "CUDA. “of inference”: divided by the peak of the run that only evaluates."
    ]
    headers = ["model", "million weights", "method", "peak MiB", "of inference"]
    return Table("Memory by model and method", headers, rows, notes)


def _or_dash(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"
