"""What an attempt runs on: threads, host, versions and code."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from zolab import __version__
from zolab.process import keep_freed_memory

_PACKAGES = ("torch", "transformers", "datasets", "hydra-core", "wandb", "numpy")


def prepare_process(cell: dict[str, Any]) -> None:
    """CPU threads as the launcher gave them, and memory that is kept between forwards.

    Sums inside a product depend on the number of threads.
    """
    keep_freed_memory()
    given = os.environ.get("OMP_NUM_THREADS") or cell["launcher"].get("threads")
    if given:
        torch.set_num_threads(int(given))


def _code() -> dict[str, str]:
    """Commit and uncommitted changes of the checkout zolab runs from; empty for a wheel."""
    here = Path(__file__).resolve().parent
    out = {}
    for key, command in (("commit", ["rev-parse", "HEAD"]), ("diff", ["diff", "HEAD"])):
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return out
        if done.returncode == 0:
            out[key] = done.stdout.strip()[:200_000]
    return out


def environment() -> dict[str, Any]:
    """Where and with what an attempt runs, for its env.json."""
    kept = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": versions(),
        "code": _code(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
        "environment": {
            k: v for k, v in os.environ.items() if k in kept or k.startswith("SLURM_JOB")
        },
    }


def versions() -> dict[str, str]:
    """Versions of zolab and of the packages whose numbers a run depends on."""
    out = {"zolab": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out
