"""What the benchmarks share: model shapes, synthetic batches, and what a result file records."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.objectives import Batch, Candidate, Encoded, collate

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
}
_PACKAGES = ("zolab", "torch", "transformers", "numpy")


def random_opt(shape: str, dtype: str, device: torch.device) -> nn.Module:
    """An OPT model with random weights (seed 0), in eval mode; `shape` names one of `SHAPES`."""
    from transformers import AutoModelForCausalLM, OPTConfig

    torch.manual_seed(0)
    config = OPTConfig(**SHAPES[shape])
    return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval().to(device)


def synthetic_batches(
    count: int, rows: int, tokens: int, vocab: int, device: torch.device
) -> list[Batch]:
    """Batches of random tokens, full rows; two one-token candidates scored at the last position."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, vocab, (count, rows, tokens), generator=generator).tolist()
    candidates = tuple(Candidate(0, (tokens - 1,), (answer,)) for answer in (5, 6))
    return [
        collate(
            [Encoded((tuple(row),), candidates, i % 2, False) for i, row in enumerate(batch)],
            pad_id=1,
            device=device,
        )
        for batch in ids
    ]


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind some tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def write_json(path: Path, benchmark: str, settings: dict[str, Any], body: dict[str, Any]) -> None:
    """One result file: what ran, on what, with which versions, and the rows."""
    record = {
        "benchmark": benchmark,
        "command": " ".join(["python", f"benchmarks/{benchmark}.py", *_arguments()]),
        "settings": settings,
        "device": _device(),
        "versions": _versions(),
        "commit": _commit(),
        **body,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
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
    return [Path(a).name if os.sep in a else a for a in sys.argv[1:]]


def _device() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a CPU that does not say
    out = {"cpu": name, "cores": os.cpu_count(), "system": platform.system()}
    if torch.cuda.is_available():
        out["gpu"] = torch.cuda.get_device_name()
    return out


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def _commit() -> str | None:
    """Short hash of the checkout, with + when the measured code differs from it; None outside."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "../zolab", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
