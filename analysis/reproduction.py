"""Published numbers beside ours, and why they may not be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from analysis import stats
from analysis.convergence import final_values
from analysis.methods import Group, Method
from analysis.tables import Table, interval, metric_name

COLUMNS = (
    "paper", "table", "model", "task", "published_method", "method", "metric", "published",
    "published_sd", "ours", "num_runs", "difference", "ci_low", "ci_high", "inside",
    "not_comparable", "setting", "notes", "run_ids",
)  # fmt: skip
#: Names of published methods (letters and digits only) to our optimizer and mask.
_METHODS = {
    "mezo": ("mezo", "none"),
    "ftadam": ("adamw", "none"),
    "zeroshot": ("zero_shot", "none"),
    "smezo": ("mezo", "small_weights"),
    "sparsemezo": ("mezo", "small_weights"),
    "mezoadam": ("mezo_adam", "none"),
    "hizoo": ("hizoo", "none"),
    "subzero": ("subzero", "none"),
    "lozo": ("lozo", "none"),
    "zoadamu": ("zo_adamu", "none"),
    "icl32": ("icl", "none"),
    "linearprobing": ("linear_probing", "none"),
}
_METRICS = {"accuracy": "accuracy", "f1": "f1"}


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        paper, table, model, task, method, tuning, setting, metric, notes: as printed.
        value: percent.
        std: standard deviation in percent, None where none is printed.
        steps: training steps, None where the paper does not say a plain number.
    """

    paper: str
    table: str
    model: str
    task: str
    method: str
    tuning: str
    setting: str
    metric: str
    value: float
    std: float | None
    steps: int | None
    notes: str


@cache
def published() -> tuple[Published, ...]:
    """Every number of `analysis/paper/*.yaml`, in order of file and line."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = []
    folder = resources.files("analysis.paper")
    for file in sorted(folder.iterdir(), key=lambda path: path.name):
        if not file.name.endswith(".yaml"):
            continue
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
        for table in content["tables"]:
            rows += [_published(content["paper"], str(table["table"]), r) for r in table["rows"]]
    return tuple(rows)


def _published(paper: str, table: str, row: dict[str, Any]) -> Published:
    text = {
        name: str(row.get(name, ""))
        for name in ("model", "task", "method", "tuning", "setting", "metric", "notes")
    }
    steps = str(row.get("steps", ""))
    return Published(
        paper=paper,
        table=table,
        value=float(row["value"]),
        std=float(row["std"]) if "std" in row else None,
        steps=int(steps) if steps.isdigit() else None,
        **text,
    )


def csv_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per published number of a model, task, method and metric that was run here.

    Published values and ours are in percent; `inside` is empty where there is no interval.
    """
    rows = []
    for group in groups:
        for number in published():
            if (_plain(number.model), _plain(number.task)) != (
                _plain(group.model.rpartition("/")[2]),
                _plain(group.task),
            ) or _METRICS.get(number.metric.lower()) != group.metric:
                continue
            for method in group.methods:
                if _METHODS.get(_plain(number.method)) == (method.optimizer, method.mask):
                    rows.append(_record(group, method, number))
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _record(group: Group, method: Method, number: Published) -> dict[str, Any]:
    values = 100.0 * final_values(method, f"test/{group.metric}")
    mean = stats.mean(values)
    low, high = stats.mean_interval(values)
    return {
        "paper": number.paper,
        "table": number.table,
        "model": group.model,
        "task": group.task,
        "published_method": f"{number.method} ({number.tuning})",
        "method": method.label,
        "metric": group.metric,
        "published": number.value,
        "published_sd": number.std,
        "ours": mean,
        "num_runs": int(values.size),
        "difference": mean - number.value,
        "ci_low": low,
        "ci_high": high,
        "inside": None if math.isnan(low) else low <= number.value <= high,
        "not_comparable": "; ".join(differences(method, number)),
        "setting": number.setting,
        "notes": number.notes,
        "run_ids": " ".join(curve.run_id for curve in method.done),
    }


def differences(method: Method, number: Published) -> list[str]:
    """In what our protocol is known to differ from the published one; what is unknown is said."""
    found = []
    config = method.config
    tuning = config.get("model.tuning.kind") or "full"
    if number.tuning not in ("", "none") and tuning != number.tuning:
        found.append(f"tuning {tuning}, published {number.tuning}")
    sizes = re.search(r"(\d+) train(?:/(\d+) dev)?(?:/(\d+) test)?", number.setting)
    names = ("task.num_train", "task.num_dev", "task.num_test")
    shots = re.search(r"k=(\d+)", number.setting)
    if sizes is not None:
        for name, want in zip(names, sizes.groups(), strict=True):
            if want is not None and config.get(name) not in (None, want):
                found.append(f"{name} {config[name]}, published {want}")
    elif shots is not None:
        found.append(f"published with k={shots[1]} examples per class")
    else:
        found.append("the paper's split sizes are not known")
    if number.steps is not None and not method.zero_shot:
        steps = config.get("train.steps")
        if steps != str(number.steps):
            found.append(f"{steps} steps, published {number.steps}")
    if "no dev selection" in number.setting and not method.zero_shot:
        found.append("published: last checkpoint; ours: best on dev")
    if config.get("model.init") == "random":
        found.append("our model has random weights")
    return found


def reproduction_table(group: Group) -> Table | None:
    """Published, ours, difference; None where nothing was published for this model and task."""
    records = csv_rows([group])
    if not records:
        return None
    rows = []
    for row in records:
        sd = "" if row["published_sd"] is None else f" ± {row['published_sd']:.1f}"
        inside = "n < 3" if row["inside"] is None else "inside" if row["inside"] else "outside"
        ours = "diverged" if math.isnan(row["ours"]) else f"{row['ours']:.1f}"
        if not math.isnan(row["ci_low"]):
            ours += f" {interval(row['ci_low'] / 100, row['ci_high'] / 100, group.metric)}"
        rows.append(
            [
                f"{row['published_method']}: {row['paper']}, {row['table']}",
                row["method"],
                f"{row['published']:.1f}{sd}",
                ours,
                f"{row['difference']:+.1f}",
                inside,
                row["not_comparable"] or "comparable",
            ]
        )
    notes = [
        f"Published test {metric_name(group.metric)} and ours, 95% bootstrap interval over seeds "
        "in brackets; “inside”: the published value lies in it. The last column names every known "
        "difference of protocol; with one, the difference of the numbers says little."
    ]
    headers = ["published as", "method here", "published", "ours", "difference", "interval", "but"]
    return Table("Beside published numbers", headers, rows, notes)
