"""Real cells that take their time: a pause after each step."""

from __future__ import annotations

import signal
import time

import zolab.run
from zolab import train

PAUSE_SECONDS = 1.5


def run(run_dir: str) -> None:
    """`zolab.run.run_dir`, slowly."""
    step = train._Loop.take_step

    def paced(loop: train._Loop) -> None:
        step(loop)
        time.sleep(PAUSE_SECONDS)

    train._Loop.take_step = paced
    zolab.run.run_dir(run_dir)


def run_deaf(run_dir: str) -> None:
    """The same, deaf to the signals that ask it to stop."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    run(run_dir)
