"""How fast this machine was, as `zolab doctor` measured it: kept beside the runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: Below run_root.
SPEED_FILE = ".speed.json"


@dataclass(frozen=True)
class Speed:
    """One measurement of a zeroth-order step.

    Attributes:
        device: such as "NVIDIA H100 80GB HBM3" or "cpu".
        model: name of the model.
        tokens_per_second: tokens of all forward passes of a step, by its seconds.
        flops: the same times two per weight.
    """

    device: str
    model: str
    tokens_per_second: float
    flops: float


def read_speed(run_root: Path) -> Speed | None:
    """The last measurement, or None if there is none that can be read."""
    try:
        return Speed(**json.loads((run_root / SPEED_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_speed(run_root: Path, speed: Speed) -> None:
    """Keep a measurement in place of the last one."""
    run_root.mkdir(parents=True, exist_ok=True)
    (run_root / SPEED_FILE).write_text(json.dumps(asdict(speed), indent=1) + "\n")
