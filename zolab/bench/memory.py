"""Peak memory of a zeroth-order step against two bare forwards on the same batches.

Every scheme runs in a process of its own. Two counters, neither of which samples:

- `allocator`: bytes handed out by torch's allocator, at their highest, from torch's own memory
  events. On the CPU it repeats to the byte. Weights and batches count.
- `rss`: highest resident size (VmHWM) above that of the same process after its imports and a tiny
  model's step. Besides tensors it holds what oneDNN and malloc keep. malloc is told to give back
  at once what is larger than 64 kB (1 MB without native kernels), and huge pages are off, so that
  it follows the allocator; it repeats within about 1 %. Linux only.

On CUDA the allocator's own peak counter is used and there is no `rss`. Both cover what happens
after the model stands: building the optimizer, `--steps` steps, flushing, a clean forward.

The exit status is 1 if a scheme takes more than its share of the inference process (`LIMITS`), or
differs by more than 5 % from inference + declared state + declared scratch. What is declared is
`optimizer.memory()`, asked before the first step. `--plant` keeps a copy of the model during the
steps, which must be found.

A scheme is a placement, plus a method of `METHODS` other than MeZO: `paired+adam`; or a first-order
method, `adamw`, which declares nothing.

    zolab bench memory
    zolab bench memory --shape small --methods --in-process
    zolab bench memory --dtype bfloat16 --native 1 --scheme paired
    zolab bench memory --plant
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zolab.bench.methods import BACKPROP, FIRST_ORDER, METHODS, SCHEMES, USUAL, Scheme

WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
}
#: Largest peak of a method without state or mask, as a multiple of the inference process.
LIMITS = {"in_place": 1.05, "paired": 1.15, "per_layer": 1.15}
TOLERANCE = 0.05
LR, EPS = 1e-6, 1e-3


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file; 1 if a target is missed."""
    args = _parse(argv)
    if args.worker:
        print(json.dumps(measure(json.loads(args.worker))))
        return 0
    names = args.scheme or (list(SCHEMES) if args.methods else USUAL)
    spawn = _here if args.in_process else _spawn
    base = {"shape": args.shape, "rows": args.rows, "tokens": args.tokens, "steps": args.steps}
    base |= {"device": args.device, "threads": args.threads, "plant": args.plant}
    rows = []
    for dtype in args.dtype:
        job = {**base, "dtype": dtype, "native": 1}
        inference = spawn({**job, "scheme": "inference", "plant": False})
        rows.append(_row("inference", job, inference, inference))
        for native in args.native:
            for name in names:
                if name == "inference":
                    continue
                job = {**base, "dtype": dtype, "native": native, "scheme": name}
                rows.append(_row(name, job, spawn(job), inference))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    from zolab.bench import common

    missed = [row for row in rows if row["missed"]]
    for row in missed:
        print(f"MISSED {row['scheme']} {row['dtype']} native={row['native']}: {row['missed']}")
    extra = {}
    if args.json is not None and not args.in_process:
        extra = {"imports_rss_bytes": _spawn({"imports": True})}
    common.report("memory", args.json, base, rows, _table(rows), **extra)
    return 1 if missed else 0


# --- one scheme, in its own process --------------------------------------------------------------


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Peaks of one scheme in this process, bytes; see the module's docstring."""
    if job.get("imports"):
        import torch

        return {"torch": _status("VmRSS")}
    import torch

    from zolab.bench.common import SHAPES, random_opt, synthetic_batches, tensor_bytes
    from zolab.objectives import BatchLoss, CausalScorer

    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages count one by one
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    # Code pages, thread pools and caches of compiled kernels belong to no scheme.
    tiny = random_opt("tiny", job["dtype"], device)
    small = synthetic_batches(2, 4, 16, SHAPES["tiny"]["vocab_size"], device)
    tiny_scorer = CausalScorer(tiny, pad_id=1)
    _take({**job, "plant": False}, tiny, [BatchLoss(tiny_scorer, [batch]) for batch in small])
    del tiny, tiny_scorer, small
    gc.collect()
    base = _status("VmRSS")
    model = random_opt(job["shape"], job["dtype"], device)
    batches = synthetic_batches(
        job["steps"], job["rows"], job["tokens"], model.config.vocab_size, device
    )
    scorer = CausalScorer(model, pad_id=1)
    losses = [BatchLoss(scorer, [batch]) for batch in batches]
    gc.collect()
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    values = [v for batch in batches for v in vars(batch).values()]
    tensors += [v for v in values if isinstance(v, torch.Tensor)]
    out = {
        "weight_bytes": tensor_bytes(parameters),
        "memory": asdict(_optimizer(job, model).memory()) if _declares(job["scheme"]) else None,
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        _take(job, model, losses)
        return {**out, "allocator_bytes": torch.cuda.max_memory_allocated(), "live": []}
    if not job.get("in_process"):
        _reset_peak()
        _take(job, model, losses)
        out["rss_bytes"] = _status("VmHWM") - base
        gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        _take(job, model, losses)
    peak, live = _allocator_peak(profile)
    return {**out, "allocator_bytes": tensor_bytes(tensors) + peak, "live": live}


def _declares(name: str) -> bool:
    return SCHEMES[name].placement not in (None, BACKPROP)


def _take(job: dict[str, Any], model: Any, losses: list[Any]) -> None:
    """The work measured: steps on each batch in turn, then a clean forward."""
    scheme = SCHEMES[job["scheme"]]
    if scheme.placement == BACKPROP:
        return _go_back(scheme, model, losses)
    if scheme.placement is None:
        for loss in losses:
            for _ in range(2):
                loss(1)
        losses[0](1)
        return
    from zolab.optim.selfcheck import settle_placement

    optimizer = _optimizer(job, model)
    if scheme.self_check:
        settle_placement(optimizer, losses[0])
    planted = copy.deepcopy(model) if job["plant"] else None
    for loss in losses:
        optimizer.step(loss)
    optimizer.flush()
    losses[0](1)
    del planted  # until here it was alive, as a forgotten copy would be


def _go_back(scheme: Scheme, model: Any, losses: list[Any]) -> None:
    """Steps of a first-order method, in the form the training loop uses."""
    from zolab.baselines import first_order

    learner = getattr(first_order, FIRST_ORDER[scheme.method])(model, lr=LR)
    for loss in losses:
        learner.step(loss)
    losses[0](1)


def _optimizer(job: dict[str, Any], model: Any) -> Any:
    from zolab import optim

    scheme = SCHEMES[job["scheme"]]
    name, options = METHODS[scheme.method]
    placements = {"in_place": "InPlace", "paired": "Paired", "per_layer": "PerLayer"}
    if scheme.placement in placements:
        options = {**options, "eps": EPS}
        options["placement"] = getattr(optim, placements[scheme.placement])()
    return getattr(optim, name)(model.named_parameters(), lr=LR, model=model, **options)


def _allocator_peak(profile: Any) -> tuple[int, list[dict[str, Any]]]:
    """Highest sum of live bytes since the profile began, and the largest blocks at that point."""
    from torch._C._profiler import _EventType

    events: list[tuple[int, int, int, str]] = []
    todo = [(node, ()) for node in profile.profiler.kineto_results.experimental_event_tree()]
    while todo:
        node, path = todo.pop()
        if node.tag == _EventType.Allocation:
            extra = node.extra_fields
            events.append((node.start_time_ns, extra.alloc_size, extra.ptr, " > ".join(path)))
        names = (*path, node.name) if node.name.startswith("aten::") else path
        todo.extend((child, names) for child in node.children)
    events.sort(key=lambda event: event[0])
    live: dict[int, tuple[int, str]] = {}
    total = peak = 0
    at_peak: dict[int, tuple[int, str]] = {}
    for _, size, ptr, name in events:
        if size > 0:
            live[ptr] = (size, name)
            total += size
        elif ptr in live:  # blocks from before the profile are not ours to count
            total -= live.pop(ptr)[0]
        if total > peak:
            peak, at_peak = total, dict(live)
    largest = sorted(at_peak.values(), reverse=True)[:6]
    return peak, [{"bytes": size, "made_by": name or "python"} for size, name in largest]


def _status(key: str) -> int:
    """A size in /proc/self/status, bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(key + ":")), 0)


def _reset_peak() -> None:
    """Make VmHWM start again from the present size."""
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")


# --- rows ----------------------------------------------------------------------------------------


def _row(
    name: str, job: dict[str, Any], got: dict[str, Any], inference: dict[str, Any]
) -> dict[str, Any]:
    """A row of the result file, with the targets it misses."""
    from zolab.optim.memory import Memory

    scheme = SCHEMES[name]
    declared = Memory(0, 1, 0, 0) if got["memory"] is None else Memory(**got["memory"])
    state = declared.state
    scratch = declared.scratch(inference["allocator_bytes"] - got["weight_bytes"])
    expected = inference["allocator_bytes"] + state + scratch
    ratio = got["allocator_bytes"] / inference["allocator_bytes"]
    of_declared = round(got["allocator_bytes"] / expected, 4)
    row = {
        "scheme": name,
        **asdict(scheme),
        "dtype": job["dtype"],
        "native": job["native"],
        "backend": "cpp" if job["native"] else "torch",
        "noise": "gauss",
        "weight_bytes": got["weight_bytes"],
        "allocator_bytes": got["allocator_bytes"],
        "rss_bytes": got.get("rss_bytes"),
        "ratio_allocator": round(ratio, 4),
        "ratio_rss": None,
        "state_bytes": state,
        "scratch_bytes": scratch,
        "of_declared": None if scheme.placement == BACKPROP else of_declared,
        "declared": got["memory"],
        "live_at_peak": got["live"],
        "missed": [],
    }
    if inference.get("rss_bytes"):
        row["ratio_rss"] = round(got["rss_bytes"] / inference["rss_bytes"], 4)
    row["missed"] = _misses(row)
    return row


def _misses(row: dict[str, Any]) -> list[str]:
    """Methods without state have a limit; all must be what they declare."""
    out = []
    if row["method"] == "mezo":
        limit = LIMITS[row["placement"] or "in_place"]
        for counter in ("allocator", "rss"):
            ratio = row[f"ratio_{counter}"]
            if ratio is not None and ratio > limit:
                out.append(f"{counter} {ratio:.3f} > {limit} of inference")
    if row["of_declared"] is not None and abs(row["of_declared"] - 1.0) > TOLERANCE:
        out.append(f"{row['of_declared']:.3f} of inference + declared state + scratch")
    return out


# --- command line --------------------------------------------------------------------------------


def _spawn(job: dict[str, Any]) -> Any:
    # Plain torch noise makes 0.5 MB buffers by the thousand: mapping each would take minutes.
    giving_back = str(1 << 16 if job.get("native", 1) else 1 << 20)
    environment = {
        **os.environ,
        **WORKER_ENV,
        "MALLOC_MMAP_THRESHOLD_": giving_back,
        "MALLOC_TRIM_THRESHOLD_": giving_back,
        "ZOLAB_NATIVE": str(job.get("native", 1)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "zolab", "bench", "memory", "--worker", json.dumps(job)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"{job}: exit status {done.returncode}\n{done.stderr}", file=sys.stderr)
        raise SystemExit(2)  # 1 is for a target missed
    return json.loads(done.stdout.splitlines()[-1])


def _here(job: dict[str, Any]) -> dict[str, Any]:
    """The same in this process: the allocator needs no other one, and it is faster."""
    os.environ["ZOLAB_NATIVE"] = str(job["native"])
    return measure({**job, "in_process": True})


def _line(row: dict[str, Any]) -> str:
    return " ".join(_cells(row))


def _cells(row: dict[str, Any]) -> list[str]:
    rss = row["ratio_rss"]
    return [
        row["scheme"],
        row["dtype"],
        str(row["native"]),
        f"{row['allocator_bytes'] / 1e6:.1f}",
        f"{row['ratio_allocator']:.3f}",
        "-" if rss is None else f"{rss:.3f}",
        *(f"{row[key] / 1e6:.1f}" for key in ("state_bytes", "scratch_bytes")),
        f"{row['of_declared']:.3f}" if row["of_declared"] is not None else "-",
        "MISSED" if row["missed"] else "ok",
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    from zolab.bench.common import table

    header = ["scheme", "dtype", "native", "peak MB", "of inference", "by rss"]
    header += ["state MB", "scratch MB", "of declared", ""]
    return table(header, [_cells(row) for row in rows])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    from zolab.bench import common

    parser = common.parser("memory", __doc__.split("\n", 1)[0])
    parser.add_argument("--shape", default="opt-125m", choices=tuple(common.SHAPES))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--native", nargs="+", type=int, default=[1, 0], choices=(0, 1))
    parser.add_argument("--methods", action="store_true", help="all schemes, not only the usual")
    parser.add_argument("--in-process", action="store_true", help="allocator only, faster")
    parser.add_argument("--scheme", nargs="+", choices=list(SCHEMES))
    parser.add_argument("--rows", type=int, default=16, help="examples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an example")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--plant", action="store_true", help="keep a copy of the model: must fail")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.worker:
        common.settle(args)
    return args
