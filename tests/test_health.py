"""Health of a run: each sign on numbers made for it, and what a real run says and logs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zolab.tracking.health import MIN_ROWS, Health, assess
from zolab.watch import Watch


def columns(
    losses: list[float], gap: float = 0.01, **more: list[float | None]
) -> dict[str, list[float | None]]:
    """Rows with these training losses and |L+ - L-| = gap."""
    made: dict[str, Any] = {
        "train/loss": losses,
        "train/loss_plus": [loss + gap / 2 for loss in losses],
        "train/loss_minus": [loss - gap / 2 for loss in losses],
    }
    return made | more


def falling(count: int = 60, noise: float = 0.02, slope: float = -0.01) -> list[float]:
    rng = random.Random(0)
    return [2.0 + slope * i + rng.gauss(0, noise) for i in range(count)]


def healthy(**more: Any) -> Health:
    return assess(columns(falling(), **more), eps=1e-3)


def test_a_healthy_run_says_nothing() -> None:
    found = healthy(**{"zo/zero_share": [0.0] * 60, "zo/moved_share": [1.0] * 60})
    assert found.warnings == found.signs == ()
    assert (found.lr, found.eps, found.diverged) == ("", "", False)
    assert found.signal == pytest.approx(0.01)
    assert found.loss_noise == pytest.approx(0.02, rel=0.3)
    assert found.signal_to_noise == pytest.approx(0.5, rel=0.3)
    assert found.change == pytest.approx(-0.4, abs=0.02)


def test_numbers_by_hand() -> None:
    # Neighbours differ by 1, 1, -2: mean 0, variance 2, so the noise is sqrt(2) / sqrt(2) = 1.
    found = assess(columns([1.0, 2.0, 3.0, 1.0], gap=0.5), eps=None)
    assert found.loss_noise == pytest.approx(1.0)
    assert found.signal_to_noise == pytest.approx(0.5)
    assert (found.num_rows, found.change, found.change_error) == (4, 0.0, pytest.approx(2**0.5))
    # eps 1e-3 on weights of size 0.1 in bfloat16, whose grid is 0.1 / 128 apart there.
    rms: list[float | None] = [0.1, None, None, None]
    data = columns([1.0, 2.0, 3.0, 1.0], **{"model/weight_rms": rms})
    found = assess(data, eps=1e-3, dtype="bfloat16")
    assert found.eps_rounding == pytest.approx(1e-3 / (0.1 / 128))
    assert assess({}, eps=1e-3) == Health(0)


@pytest.mark.parametrize(
    ("data", "sign", "lr", "eps"),
    [
        (columns(falling(slope=0.02)), "diverged", "down", ""),
        (columns([*falling(), math.nan]), "diverged", "down", ""),
        (columns(falling(), **{"dev/loss": [1.0, *[None] * 58, 3.0]}), "diverged", "down", ""),
        (columns(falling(), **{"zo/zero_share": [0.3] * 60}), "zeros", "", "up"),
        (columns(falling(), gap=1e-7), "rounding", "", "up"),
        (columns(falling(), gap=1.5), "not_local", "", "down"),
        (columns(falling(), **{"zo/moved_share": [0.001] * 60}), "not_moved", "up", ""),
        (columns(falling(slope=0.0)), "flat", "up", ""),
        (columns(falling(), **{"zo/nonfinite_total": [2.0] * 60}), "nonfinite", "", ""),
    ],
)
def test_each_sign(data: Any, sign: str, lr: str, eps: str) -> None:
    found = assess(data, eps=1e-3)
    assert sign in found.signs
    assert (found.lr, found.eps) == (lr, eps)
    assert found.diverged == (sign == "diverged")
    assert len(found.warnings) == len(found.signs)


def test_eps_below_the_grid_of_the_weights() -> None:
    data = columns(falling(), **{"model/weight_rms": [1.0] * 60})
    assert "eps_lost" in assess(data, eps=1e-3, dtype="bfloat16").signs
    assert assess(data, eps=1e-3, dtype="float32").signs == ()


def test_updates_below_the_grid_of_the_weights() -> None:
    """lr 1e-12 with coefficients of 20 on weights of size 0.1 in float32, 1.2e-8 apart."""
    more: dict[str, Any] = {"model/weight_rms": [0.1] * 60, "zo/projected_grad": [20.0, -20.0] * 30}
    found = assess(columns(falling(), **more, **{"train/lr": [1e-12] * 60}), eps=1e-3)
    assert found.step_rounding == pytest.approx(2e-11 / (0.1 * 2.0**-23))
    assert (found.signs, found.lr) == (("step_lost",), "up")
    assert assess(columns(falling(), **more, **{"train/lr": [1e-6] * 60}), eps=1e-3).signs == ()
    # 16-bit weights are rounded stochastically: small steps count on average.
    half = assess(columns(falling(), **more, **{"train/lr": [1e-12] * 60}), eps=1.0,
                  dtype="bfloat16")  # fmt: skip
    assert "step_lost" not in half.signs


def test_little_is_said_of_few_rows_and_dev_counts_before_batches() -> None:
    assert assess(columns(falling(MIN_ROWS - 1), gap=1e-7), eps=1e-3).warnings == ()
    flat = columns(falling(slope=0.0), **{"dev/loss": [1.0, *[None] * 58, 0.7]})
    assert assess(flat, eps=1e-3).signs == ()
    begun = columns(falling(), **{"zo/moved_share": [0.0, *[None] * 59]})  # before any step
    assert assess(begun, eps=1e-3).signs == ()


# --- in a run ------------------------------------------------------------------------------------


class _Learner:
    journaled = True

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": list(model.parameters()), "lr": 1.0, "eps": 1e-3}]


class _Said(list):
    def say(self, text: str) -> None:
        self.append(text)


def test_moved_share_counts_weights_that_changed() -> None:
    model = nn.Linear(10, 10, bias=False)
    watch = Watch(model, _Learner(model))
    assert watch.moved() == {"zo/moved_share": 0.0}
    with torch.no_grad():
        model.weight[:3] += 1.0
    assert watch.moved() == {"zo/moved_share": pytest.approx(0.3)}
    facts = watch.facts()
    assert facts["model/num_params"] == 100
    assert facts["model/weight_rms"] == pytest.approx(float(model.weight.square().mean().sqrt()))


def test_a_finding_is_said_once() -> None:
    model = nn.Linear(2, 2)
    watch, said = Watch(model, _Learner(model)), _Said()
    rows: dict[int, dict[str, float]] = {}
    for step, loss in enumerate(falling(200, slope=0.02)):
        rows[step] = {"train/loss": loss, "train/loss_plus": loss, "train/loss_minus": loss}
        watch.tell(rows, said)
    assert len(said) == len(set(said)) == 2
    assert any(text.startswith("health: the loss has risen") for text in said)
    assert any("rounding steps of the loss" in text for text in said)


def test_a_pointless_run_says_so(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """lr and eps far too small: coefficients are rounding and nothing moves."""
    from zolab.cli import main

    words = ["debug=smoke", f"run_root={tmp_path}", "optimizer.eps=1e-9", "optimizer.lr=1e-30",
             "train.steps=24", "train.log_every=1", "train.eval_every=12"]  # fmt: skip
    assert main(words) == 0
    text = capfd.readouterr().err
    assert "health: " in text
    assert "try a larger optimizer.eps" in text
    (file,) = tmp_path.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0]["model/num_params"] > 1e6
    assert rows[0]["zo/moved_share"] == 0.0
    assert {"perf/data_seconds", "perf/evaluation_seconds"} <= rows[-1].keys()
    parts = ("data", "forward", "perturb", "update")
    took = {part: rows[-1][f"perf/{part}_seconds"] for part in parts}
    assert min(took.values()) > 0.0
    assert sum(took.values()) - rows[-1]["perf/woven_seconds"] <= rows[-1]["perf/step_seconds"]
    assert not {"model/num_params"} & rows[-1].keys()
