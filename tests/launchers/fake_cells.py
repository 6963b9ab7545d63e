"""A cell without training: what it does is said by `do` in its config."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from zolab import ledger, process

STEP_SECONDS = 0.1
#: When this process began, as far as it can tell.
_STARTED = time.time() - time.process_time()


def _steps(folder: Path, claim: ledger.Claim, total: int) -> None:
    """Append one line a step, from where the last attempt got; stop between two when asked."""
    done = steps_of(folder)
    with open(folder / "steps", "a") as file:
        for step in range(len(done) + 1, total + 1):
            time.sleep(STEP_SECONDS)
            claim.check()
            print(step, file=file, flush=True)
            claim.beat({"step": step, "steps": total})
            if reason := process.stop_asked():
                ledger.write_status(folder, "preempted", error=f"stopped by {reason}")
                raise process.Preempted(f"stopped by {reason} after step {step}")


def steps_of(folder: Path) -> list[int]:
    """The steps a cell took, in order."""
    file = folder / "steps"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def run(run_dir: str) -> None:
    """Claim, beat, do as told, write a result."""
    folder = Path(run_dir)
    cell = json.loads((folder / "config.json").read_text())
    if (folder / "result.json").exists():
        return
    with ledger.acquire(folder, interval=0.1) as claim:
        attempt = ledger.next_attempt(folder)
        ledger.write_status(folder, "running", attempt=int(attempt.name))
        claim.beat({"step": 1, "steps": 4, "loss": 0.5}, force=True)
        begin = time.time()
        print(f"cell {folder.name} says hello")
        for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES"):
            print(f"{key}={os.environ.get(key)}")
        sys.stdout.flush()
        if cell["do"] == "steps":
            _steps(folder, claim, round(cell["seconds"] / STEP_SECONDS))
        else:
            time.sleep(cell.get("seconds", 0.0))
        marker = folder / "was_here"
        first = not marker.exists()
        marker.touch()
        if cell["do"] == "raise" or (cell["do"] == "raise once" and first):
            (attempt / "error.txt").write_text("Traceback\nValueError: told to raise\n")
            ledger.write_status(folder, "failed", error="ValueError: told to raise")
            raise ValueError("told to raise")
        if cell["do"] == "stop once" and first:
            os.kill(os.getpid(), signal.SIGTERM)
            ledger.write_status(folder, "preempted", error=process.stop_asked())
            raise process.Preempted(process.stop_asked())
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
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "node": os.environ.get("SLURMD_NODENAME"),
            "started": _STARTED,
        }
        ledger.write_json(folder / "result.json", body)
        ledger.write_status(folder, "done")
