"""Run a cell in child processes that are killed at random moments, until it is done.

    python -m tests.resume_driver RUN_DIR NUM_KILLS SEED

Everything heavy is imported once; each attempt is a forked child, so that kills fall on training
and not on imports. Prints one line per attempt.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import hydra.utils  # noqa: F401 - imported here so that children need not do it
import transformers.models.opt.modeling_opt  # noqa: F401
import wandb  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import zolab.run
from zolab.tracking.local import read_rows


def rows_on_disk(folder: Path) -> int:
    """Journal and metrics rows so far: what tells that an attempt got somewhere."""
    journals = folder.glob("attempts/*/journal.jsonl")
    return sum(len(read_rows(p)) for p in [*journals, folder / "metrics.jsonl"])


def main(folder: Path, kills: int, seed: int) -> int:
    rng = random.Random(seed)
    done = 0
    while True:
        before = rows_on_disk(folder)
        child = os.fork()
        if child == 0:
            try:
                zolab.run.run_dir(folder)
            except BaseException as error:
                print(f"child: {error!r}", flush=True)
                os._exit(1)
            os._exit(0)
        if done < kills:
            # Some kills fall right after a few rows, some in start-up, some in an evaluation.
            wanted = before + rng.choice([0, 1, 1, 2, 2, 3, 4])
            limit = time.monotonic() + 60
            while time.monotonic() < limit and os.waitpid(child, os.WNOHANG) == (0, 0):
                if rows_on_disk(folder) >= wanted:
                    time.sleep(rng.uniform(0, 0.08))
                    break
                time.sleep(0.001)
            else:
                print("attempt ended by itself", flush=True)
                return 0 if (folder / "result.json").exists() else 1
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            print(f"killed attempt {done} at {rows_on_disk(folder)} rows", flush=True)
            continue
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
