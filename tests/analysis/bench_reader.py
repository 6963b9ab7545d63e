"""Cold reading of many long offline wandb files, by the clock and in processor time.

    python -m tests.analysis.bench_reader FOLDER [--runs 200] [--rows 20000] [--rounds 1] [--evict]

Makes `FOLDER/runs` unless it is there (35 MB a run; delete it yourself): one run with the keys and
kinds of numbers of a real one is logged by wandb itself, the others are that file under other run
ids. Each round reads all of it once without copies and once from them, each in a new process.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import struct
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from analysis.reading.cache import FOLDER
from analysis.runs import read
from tests.analysis import analysis_synth as synth

_BLOCK = 32768
_NAME = "long0000"


def full_rows(count: int, every: int = 10) -> list[dict[str, Any]]:
    """Rows of a zeroth-order run on a CPU, 23 numbers besides the step in most of them."""
    rng = random.Random(0)

    def near(value: float) -> float:
        return value * (1 + 0.3 * rng.random())

    rows = []
    for i in range(count):
        row = {
            "step": every * i, "forwards_total": 2 * every * i, "examples_total": 16 * every * i,
            "zo/zero_share": 0.0, "zo/zero_coefficient_share": 0.0, "zo/nonfinite_total": 0,
            "train/loss": near(0.46801341750000003), "train/lr": 0.0025,
            "train/loss_plus": near(0.469882968), "train/loss_minus": near(0.466143867),
            "zo/projected_grad": rng.choice([-1, 1]) * near(1.8695505000000112),
            "train_seconds": 0.331 * i * (1 + 1e-3 * rng.random()), "gpu_seconds": 0.0,
            "perf/peak_bytes": 544829440 + 4096 * rng.randrange(9),
            "perf/eval_peak_bytes": 549765120, "perf/base_bytes": 434188032,
            "time": 1795366995.3916075 + 3.345 * i + rng.random(), "attempt": 1,
            "perf/step_seconds": near(0.039580849900812606),
            "perf/data_seconds": near(0.0012689101000432856),
            "perf/forward_seconds": near(0.035375369299799786),
            "perf/update_seconds": near(0.0008155205992807169),
            "perf/perturb_seconds": near(0.0024344691995793256),
            "perf/woven_seconds": near(0.0024344691995793256),
        }  # fmt: skip
        if i % 20 == 0:
            row |= {"dev/loss": near(0.6), "dev/accuracy": rng.randrange(500, 900) / 1000}
            row |= {"zo/moved_share": rng.randrange(65536) / 65536}
            row["perf/evaluation_seconds"] = near(0.4)
        rows.append(row)
    rows[-1] |= {"test/accuracy": 0.75, "test/loss": near(0.6), "test/step": 0}
    return rows


def make(root: Path, runs: int, rows: int) -> None:
    """`runs` files below `root`, each with `rows` rows."""
    cfg = synth.config(0, **{"train.steps": 10 * (rows - 1)})
    made = synth.write_wandb(root.parent / "source", _NAME, cfg, full_rows(rows))
    data = made.read_bytes()
    for number in range(runs):
        run_id = f"long{number:04d}"
        folder = root / run_id / "wandb" / f"offline-run-20250101_000000-{run_id}"
        folder.mkdir(parents=True)
        (folder / f"run-{run_id}.wandb").write_bytes(_renamed(data, run_id.encode()))
    shutil.rmtree(root.parent / "source")


def _renamed(data: bytes, run_id: bytes) -> bytes:
    """The file under another run id of the same length, with sound checksums."""
    out = bytearray(data)
    at = 7
    while at + 7 <= len(data):
        end = (at // _BLOCK + 1) * _BLOCK
        if end - at < 7:
            at = end
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        if _NAME.encode() in body:
            body = body.replace(_NAME.encode(), run_id)
            crc = zlib.crc32(body, zlib.crc32(bytes([kind])))
            out[at : at + 7 + length] = struct.pack("<IHB", crc, length, kind) + body
        at += 7 + length
    return bytes(out)


def _evict(path: Path) -> None:
    """Have the kernel forget what it holds of a file."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _timed(root: Path, expected: tuple[int, int]) -> str:
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    runs = read(root, "wandb")
    wall = time.monotonic() - begin
    shape = len(runs.logs), sum(log.height for log in runs.logs.values())
    assert shape == expected, shape
    assert not runs.notes, runs.notes
    self, below = (resource.getrusage(who) for who in
                   (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
    cpu = self.ru_utime - before.ru_utime + below.ru_utime
    system = self.ru_stime - before.ru_stime + below.ru_stime
    return f"{wall:6.2f} s wall  {cpu + system:6.2f} s CPU ({system:.2f} in the kernel)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--evict", action="store_true", help="from the disk, not from memory")
    args = parser.parse_args()
    root = args.folder / "runs"
    if not root.exists():
        make(root, args.runs, args.rows)
    files = sorted(root.rglob("*.wandb"))
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}")
    for _ in range(args.rounds):
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        for path in files if args.evict else ():
            _evict(path)
        for name in ("cold", "from copies"):
            # A new process each time: nothing imported, nothing warm.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                said = pool.submit(_timed, root, (args.runs, args.runs * args.rows)).result()
            print(f"{name:12s}", said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
