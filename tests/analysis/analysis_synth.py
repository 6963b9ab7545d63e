"""Run folders and offline wandb files made to measure for the tests of `analysis`."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import yaml

from zolab.tracking.schema import BACKPROP_FORWARDS
from zolab.tracking.wandb_file import read_log

#: Set where every program the tests can use must be there: their absence fails, nothing skips.
REQUIRE_ALL = os.environ.get("ZOLAB_REQUIRE_ALL") == "1"

#: What a page must show as it is.
NASTY = "<img src=x onerror=alert(1)><b>bold</b><script>alert(2)</script>"

BASE: dict[str, Any] = {
    "run_root": "runs",
    "seed": 0,
    "model": {"name": "tiny", "path": "tiny", "revision": None, "config": {}, "device": "auto"},
    "task": {"name": "toy", "kind": "classification", "num_dev": 100, "label_words": [" a", " b"]},
    "optimizer": {
        "_target_": "zolab.optim.ZeroOrder",
        "name": "mezo",
        "lr": 2.0e-4,
        "eps": 1.0e-3,
        "estimator": {"_target_": "zolab.optim.TwoSided", "num_probes": 1},
    },
    "sparsity": {"_target_": "zolab.optim.Dense", "name": "none"},
    "train": {"steps": 40, "batch_size": 16, "eval_every": 10, "log_every": 10,
              "select_by": "loss"},
    "tracking": {"name": "local", "wandb": False},
}  # fmt: skip


def config(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The base config with dotted keys changed: `config(1, **{"optimizer.lr": 1e-3})`."""
    made = copy.deepcopy(BASE)
    made["seed"] = seed
    for key, value in changes.items():
        node = made
        *path, last = key.split(".")
        for name in path:
            node = node[name]
        node[last] = value
    return made


def masked(name: str, share: float) -> dict[str, Any]:
    """Config change for a mask."""
    return {"sparsity": {"_target_": "zolab.optim.Mask", "name": name, "sparsity": share}}


def zero_shot(calibrate: bool) -> dict[str, Any]:
    """Config change for an evaluation without training."""
    name = "zero_shot_calibrated" if calibrate else "zero_shot"
    return {"optimizer": {"_target_": "zolab.baselines.ZeroShot", "name": name}}


ADAMW = {"optimizer": {"_target_": "zolab.baselines.AdamW", "name": "adamw", "lr": 3.0e-4}}


def rows(
    accuracies: list[float],
    *,
    every: int = 10,
    forwards: int = 2,
    seconds: float = 0.01,
    test: float | None = None,
    attempt: int = 1,
) -> list[dict[str, Any]]:
    """Metrics rows with the given dev accuracy at steps 0, every, 2 every, …

    Args:
        accuracies: dev accuracy at each evaluation; a NaN also makes the dev loss NaN.
        every: steps between evaluations.
        forwards: forwards per step; that of back-propagation makes it a first-order run.
        seconds: training seconds per step.
        test: test accuracy on the last row; None for a run that did not finish.
        attempt: the attempt that wrote the rows.
    """
    made = []
    for i, accuracy in enumerate(accuracies):
        step = i * every
        row: dict[str, Any] = {"step": step, "dev/accuracy": accuracy, "dev/loss": 1.0 - accuracy}
        row |= {"forwards_total": forwards * step, "train_seconds": seconds * step}
        row |= {"attempt": attempt, "time": 1.7e9 + step}
        if step:
            row |= {"train/loss": 0.7 - 0.001 * step + accuracy / 7, "train/lr": 1e-6}
            row |= {"perf/step_seconds": seconds, "perf/forward_seconds": 0.75 * seconds}
            row["perf/peak_bytes"] = 100 << 20
            if forwards < BACKPROP_FORWARDS:
                row |= {"zo/projected_grad": accuracy - 0.5, "zo/zero_share": 0.0}
        made.append(row)
    if test is not None:
        best = max(range(len(accuracies)), key=lambda i: (not math.isnan(accuracies[i]), i))
        made[-1] |= {"test/accuracy": test, "test/loss": 1.0 - test, "test/step": best * every}
    return made


def write_local(
    root: Path, run_id: str, cfg: dict[str, Any], lines: list[dict[str, Any]], **files: Any
) -> Path:
    """A run folder; `status` and `result` become JSON files when given."""
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    text = "".join(json.dumps(row) + "\n" for row in lines)
    (folder / "metrics.jsonl").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_wandb(
    folder: Path, run_id: str, cfg: dict[str, Any], lines: list[dict[str, Any]], schema: int = 1
) -> Path:
    """One attempt as the tracker writes it; returns the `.wandb` file."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.rglob("*.wandb"))
    run = wandb.init(
        mode="offline",
        project="zolab",
        id=run_id,
        dir=str(folder),
        config={"zolab": cfg, "run_id": run_id, "schema": schema},
        settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
    )
    for row in lines:
        run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
    run.finish()
    (made,) = set(folder.rglob("*.wandb")) - before
    # wandb's service may write the last bytes a moment after finish() has returned.
    deadline = time.monotonic() + 30
    while read_log(made).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return made


def write_demo(root: Path, *, noise: float = 0.004) -> None:
    """A demo-sized folder (methods × 3 seeds, local only) with curves of plausible shape."""
    steps, every = 800, 100
    plans = [
        (zero_shot(False), None, 0.574, 0.0, 2),
        (zero_shot(True), None, 0.750, 0.0, 2),
        ({}, 0.809, 0.574, 90.0, 2),
        (masked("small_weights", 0.75) | {"optimizer.lr": 4e-4}, 0.812, 0.574, 80.0, 2),
        (masked("random", 0.75) | {"optimizer.lr": 4e-4}, 0.811, 0.574, 85.0, 2),
        (masked("large_weights", 0.75) | {"optimizer.lr": 4e-4}, 0.802, 0.574, 190.0, 2),
        (ADAMW, 0.856, 0.574, 30.0, 3),
    ]
    for number, (changes, end, start, pace, forwards) in enumerate(plans):
        for seed in range(3):
            wiggle = [noise * math.sin(7.1 * seed + 3.3 * number + 1.7 * i) for i in range(9)]
            cfg = config(seed, **changes)
            cfg["model"]["name"], cfg["task"]["name"] = "opt-prompt-2m", "uci_sent"
            cfg["train"] |= {"steps": 200 if forwards == 3 else steps, "eval_every": every}
            if end is None:
                value = start + wiggle[0] * (start > 0.6)
                lines = rows([value], test=value + 0.001 * number)
            else:
                gap = 25 if forwards == 3 else every
                curve = [end - (end - start) * math.exp(-i * gap / pace) for i in range(9)]
                curve = [curve[0], *(v + w for v, w in zip(curve[1:], wiggle[1:], strict=True))]
                lines = rows(
                    curve, every=gap, forwards=forwards,
                    seconds=0.025 + 0.001 * seed + 0.004 * number, test=end + wiggle[3],
                )  # fmt: skip
            write_local(root, f"{number:08x}{seed:08x}", cfg, lines, status={"state": "done"})


def write_zoo(root: Path) -> Path:
    """Done, running-like, failed, diverged, hostile and unreadable runs."""
    rand = masked("random", 0.5)
    rising = rows([0.6, 0.55, 0.5, 0.4, 0.3], test=0.3)
    for row in rising[1:]:
        row |= {"dev/loss": 5.0, "zo/moved_share": 0.5}
    plans: dict[str, Any] = {
        "aa": (config(0), rows([0.5, 0.6, 0.7, 0.75, 0.8], test=0.7), {}),
        "bb": (config(1), rows([0.5, 0.6, 0.8, 0.9, 0.8], test=0.9), {}),
        "cc": (config(0, **rand), rows([0.5, 0.8, 0.8, 0.8, 0.6], test=0.8), {}),
        "dd": (config(1, **rand), rows([0.5, 0.6]), {"state": "failed",
               "error": NASTY}),
        "ee": (config(0, **{"optimizer.lr": 1.0}), rising, {}),
        "ff": (config(0, **{"task.name": NASTY, "optimizer.name": NASTY}), [], {}),
    }  # fmt: skip
    for run_id, (cfg, lines, status) in plans.items():
        done = {"result": {"schema": 1}} if lines and "test/loss" in lines[-1] else {}
        write_local(root, run_id, cfg, lines, status=status, **done)
    attempt = root / "dd" / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / "error.txt").write_text(f"Traceback\n{NASTY}")
    broken = root / "gg"
    broken.mkdir()
    (broken / "config.yaml").write_text("a: [")
    return root
