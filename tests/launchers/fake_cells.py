"""A cell without training: what it does is said by `do` in its config."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from zolab import ledger


def run(run_dir: str) -> None:
    """Claim, beat, do as told, write a result."""
    folder = Path(run_dir)
    cell = json.loads((folder / "config.json").read_text())
    if (folder / "result.json").exists():
        return
    with ledger.acquire(folder, interval=0.1) as claim:
        attempt = ledger.next_attempt(folder)
        ledger.write_status(folder, "running", attempt=int(attempt.name))
        claim.beat({"step": 1, "steps": 4, "loss": 0.5, "rss_bytes": 64 << 20}, force=True)
        begin = time.time()
        print(f"cell {folder.name} says hello")
        for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"):
            print(f"{key}={os.environ.get(key)}")
        sys.stdout.flush()
        time.sleep(cell.get("seconds", 0.0))
        marker = folder / "was_here"
        first = not marker.exists()
        marker.touch()
        if cell["do"] == "raise" or (cell["do"] == "raise once" and first):
            (attempt / "error.txt").write_text("Traceback\nValueError: told to raise\n")
            ledger.write_status(folder, "failed", error="ValueError: told to raise")
            raise ValueError("told to raise")
        if cell["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if cell["do"] == "exit":
            os._exit(7)
        if cell["do"] == "nothing":
            return
        body = {
            "seed": cell["seed"],
            "best": {"dev/loss": 0.25, "dev/accuracy": 0.75},
            "began": begin,
            "ended": time.time(),
            "torch": "torch" in sys.modules,
        }
        ledger.write_json(folder / "result.json", body)
        ledger.write_status(folder, "done")
