"""Train a model of a few hundred megabytes from disk and watch this process's memory.

    python -m tests.offload_driver FOLDER [--limit]

Writes the model, starts a second process that trains it, and prints a line of JSON: the model's
bytes, the anonymous resident memory (RssAnon) of that process with its libraries imported, and the
peak of it, sampled all along. With `--limit`, and where one can be made, that process lives in a
control group whose limit is half of the model, pages of its files included.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

LAYERS, WIDTH = 72, 512


def write_model(folder: Path) -> None:
    """A random LLaMA, one tensor in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    from tests.test_offload_run import assets

    source = assets.model_dir("opt-prompt-2m")
    tokenizer = AutoTokenizer.from_pretrained(source)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=8, max_position_embeddings=64,
        tie_word_embeddings=True, architectures=["LlamaForCausalLM"], dtype="float32",
    )  # fmt: skip
    config.save_pretrained(folder)
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    block = 0.02 * torch.randn(WIDTH * 3 * WIDTH, generator=generator)
    tensors = {
        n: torch.ones(s) if len(s) == 1 else (
            block[: s.numel()].view(s) if s.numel() <= len(block)
            else 0.02 * torch.randn(s, generator=generator)
        )
        for n, s in shapes.items()
    }  # fmt: skip
    # Tensors may not share memory in a file: one shard a layer, each tensor its own copy.
    index, total = {}, 0
    groups: dict[str, dict] = {}
    for name, tensor in tensors.items():
        part = name.split("layers.")[1].split(".")[0] if "layers." in name else "rest"
        groups.setdefault(part, {})[name] = tensor
    for part, group in groups.items():
        file = f"model-{part}.safetensors"
        save_file({n: t.clone() for n, t in group.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(group, file)
        total += sum(t.numel() * 4 for t in group.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )


def anonymous() -> int:
    """Bytes of this process's anonymous resident memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def limit_memory(most: int) -> str | None:
    """Put this process under a limit, bytes; the folder of its control group, None if none."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"zolab-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(most))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return str(group)
    return None


def train(run: Path, model: Path, limit: str) -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401

    import zolab.run

    imports = anonymous()  # 150 MB more where torch is built for CUDA
    size = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    most = max(size // 2, imports + size // 5)
    group = limit_memory(most) if limit else None
    peak, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = zolab.run.run_dir(run)
    over.set()
    watcher.join()
    rows = [json.loads(x) for x in (run / "attempts/1/journal.jsonl").read_text().splitlines()]
    print(
        json.dumps(
            {
                "model_bytes": size,
                "peak_anonymous": peak[0],
                "imports": imports,
                "limit": most if group else None,
                "group": group,
                "steps": result["steps"],
                "moved": all(row["c"] and row["c"][0] for row in rows),
            }
        )
    )


def main(root: Path, limit: str = "") -> int:
    from tests.test_resume import prepare

    model = root / "model"
    write_model(model)
    run = prepare(
        root / "runs", f"model.path={model}", "optimizer/placement=offload", "train.steps=2",
        "optimizer.placement.tier=disk", "optimizer.placement.write_back_every=2",
        "train.eval_every=2", "train.batch_size=2", "task.num_train=8", "task.num_dev=2",
        "task.num_test=2", "optimizer.lr=1e-4",
    )  # fmt: skip
    os.execv(
        sys.executable,
        [sys.executable, "-c", "import sys, pathlib; from tests.offload_driver import train; "
         "train(*map(pathlib.Path, sys.argv[1:3]), sys.argv[3])", str(run), str(model), limit],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
