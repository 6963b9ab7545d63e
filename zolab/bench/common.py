"""What the parts of the benchmark share: models, batches, fair turns, and what a file records."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from zolab.environment import versions
from zolab.errors import UserError
from zolab.models.load import DTYPES, by_onednn
from zolab.models.shapes import auto_class, shape_config
from zolab.objectives import Batch, Candidate, Encoded, collate
from zolab.optim import fast, linear
from zolab.process import keep_freed_memory
from zolab.verbs.common import Parser

__all__ = ["DTYPES", "SHAPES", "Parser"]

#: Changes to OPT's default config, which is the 125m model; weights are random.
SHAPES: dict[str, dict[str, int]] = {
    "opt-125m": {},
    # Big enough that the optimizer treats it as big, all in its layers: for tests of this program.
    "small": {
        "vocab_size": 1024,
        "hidden_size": 256,
        "word_embed_proj_dim": 256,
        "ffn_dim": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "opt-1.3b": {
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    "opt-13b": {
        "hidden_size": 5120,
        "word_embed_proj_dim": 5120,
        "ffn_dim": 20480,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}

#: Fastest first; the last one is always there.
BACKENDS = ("cpp", "triton", "torch")
_SWITCHES = {"cpp": "ZOLAB_NATIVE", "triton": "ZOLAB_TRITON"}

_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = time.perf_counter


def parser(part: str, description: str) -> Parser:
    """A parser with the arguments that all parts have."""
    out = Parser(prog=f"zolab bench {part}", description=description)
    out.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    out.add_argument(
        "--clock",
        choices=_CLOCKS,
        default="wall",
        help="cpu: processor time of all threads, for a machine with other work on it",
    )
    out.add_argument("--threads", type=int, default=cores(), help="default: cores of this process")
    out.add_argument(
        "--json", type=Path, help="file of rows to write, with a table beside it (.md)"
    )
    return out


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle(args: Any) -> torch.device:
    """Threads and device of a part, looked over; so is the folder of its file.

    Raises:
        UserError: a device that is not here, or a file that cannot be written.
    """
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: expected at least 1")
    if args.json is not None:
        folder = args.json.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or args.json.is_dir():
            raise UserError(f"--json {args.json}: cannot be written")
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: not usable here ({error})") from None
    if args.clock == "cpu" and device.type != "cpu":
        raise UserError(f"--clock cpu: does not see what {device} does")
    global _clock
    _clock = _CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run does
    return device


def take_linear(out: Parser) -> None:
    """The argument that chooses what multiplies linear layers."""
    out.add_argument(
        "--linear",
        choices=("auto", "torch", "onednn"),
        default="auto",
        help="what multiplies float32 linear layers on a CPU, as model.linear",
    )


def linear_name(args: Any, dtype: str) -> str:
    """What multiplies the linear layers of a run of the benchmark."""
    there = torch.device(args.device).type == "cpu" and dtype == "float32"
    return "onednn" if there and by_onednn(args.linear) else "torch"


def random_opt(shape: str, dtype: str, device: torch.device, by: str = "auto") -> nn.Module:
    """An OPT model with random weights (seed 0), in eval mode.

    Args:
        shape: one of `SHAPES`.
        dtype: one of `DTYPES`.
        device: where it is made.
        by: what multiplies its linear layers, as `model.linear`.
    """
    torch.manual_seed(0)
    config = shape_config({"model_type": "opt", **SHAPES[shape]})
    model = auto_class("causal").from_config(config, dtype=DTYPES[dtype]).eval().to(device)
    if by_onednn(by):
        linear.use_onednn(model)
    return model


def synthetic_examples(count: int, rows: int, tokens: int, vocab: int) -> list[list[Encoded]]:
    """Batches of random tokens, full rows; two one-token candidates scored at the last position."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, vocab, (count, rows, tokens), generator=generator).tolist()
    candidates = tuple(Candidate(0, (tokens - 1,), (answer,)) for answer in (5, 6))
    return [
        [Encoded((tuple(row),), candidates, i % 2, False) for i, row in enumerate(batch)]
        for batch in ids
    ]


def synthetic_batches(
    count: int, rows: int, tokens: int, vocab: int, device: torch.device
) -> list[Batch]:
    """The same as tensors."""
    examples = synthetic_examples(count, rows, tokens, vocab)
    return [collate(batch, pad_id=1, device=device) for batch in examples]


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind some tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


# --- time ----------------------------------------------------------------------------------------


@contextmanager
def backend(name: str) -> Iterator[None]:
    """While active, sweeps are made by `cpp` or `triton` (where they can be had) or by `torch`."""
    before = {key: os.environ.get(key) for key in _SWITCHES.values()}
    os.environ.update({key: str(int(key == _SWITCHES.get(name))) for key in before})
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def backends(device: torch.device) -> list[str]:
    """Those that there are on a device, fastest first."""
    found = []
    for name in BACKENDS[:-1]:
        with backend(name):
            if fast.name("gauss", torch.empty(0, device=device)) == name:
                found.append(name)
    return [*found, "torch"]


def chosen_backends(name: str | None, device: torch.device) -> list[str]:
    """The one asked for; all there are if none is.

    Raises:
        UserError: it is not to be had on this device.
    """
    found = backends(device)
    if name is not None and name not in found:
        raise UserError(f"--backend {name}: not on this {device.type}; there is {', '.join(found)}")
    return [name] if name is not None else found


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of one call by the clock chosen, until the device is done."""
    begin = _clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _clock() - begin


def spread(values: Sequence[float]) -> tuple[float, list[float]]:
    """Median and quartiles."""
    at_least_two = values if len(values) > 1 else [*values, *values]
    low, _, high = quantiles(at_least_two, n=4, method="inclusive")
    return round(median(values), 4), [round(low, 4), round(high, 4)]


def roofline(device: torch.device, dtype: str, megabytes: int = 256) -> dict[str, float]:
    """What the device does at best, medians of 7.

    Returns:
        read_write: bytes a second, read and written, of an in-place pass over `megabytes`.
        matmul: FLOP a second of a square product of 1024 (4096 on CUDA) in `dtype`.
    """
    size = megabytes << 20
    weight = torch.ones(size // 4, device=device)
    side = 4096 if device.type == "cuda" else 1024
    a = torch.ones(side, side, device=device, dtype=DTYPES[dtype])
    sweep = [seconds(lambda: weight.mul_(1.0), device) for _ in range(8)][1:]
    product = [seconds(lambda: a @ a, device) for _ in range(8)][1:]
    return {"read_write": 2 * size / median(sweep), "matmul": 2 * side**3 / median(product)}


# --- files ---------------------------------------------------------------------------------------


def report(
    part: str,
    path: Path | None,
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    text: str,
    **more: Any,
) -> None:
    """Print a table; with a path, write the rows as JSON and the table beside it as Markdown.

    Args:
        part: name of the part.
        path: JSON file, or None.
        settings: what was asked for.
        rows: what was measured.
        text: the table.
        more: further keys of the file.
    """
    print(text)
    if path is None:
        return
    record = {
        "benchmark": part,
        "command": " ".join(["zolab", "bench", part, *_arguments()]),
        "settings": {k: v for k, v in settings.items() if k != "json"},
        "device": device_facts(),
        "versions": versions(),
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
        **more,
        "rows": list(rows),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    facts = [f"`{record['command']}`", ", ".join(f"{k} {v}" for k, v in record["device"].items())]
    facts.append(", ".join(f"{k} {v}" for k, v in record["versions"].items()))
    facts.append(f"commit {record['commit']}, load average {record['load_average']} at the end")
    path.with_suffix(".md").write_text("\n".join([*(f"- {x}" for x in facts), "", text]) + "\n")
    print(f"wrote {os.path.relpath(path)}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(str(c).ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _arguments() -> list[str]:
    """The arguments given, file names without their folder: results name no path of a machine."""
    given = sys.argv[3:] if sys.argv[1:2] == ["bench"] else []
    return [Path(a).name if os.sep in a else a for a in given]


def device_facts() -> dict[str, Any]:
    """Name of the CPU, cores, and the GPU with its driver where there is one."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a CPU that does not say
    out = {"cpu": name, "cores": cores(), "system": platform.system()}
    if torch.cuda.is_available():
        out["gpu"] = torch.cuda.get_device_name()
        out["cuda"] = torch.version.cuda
    return out


def _commit() -> str | None:
    """Short hash of the checkout, with + when the measured code differs from it; None outside."""
    here = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
