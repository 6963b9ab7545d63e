"""Offloaded steps against the same steps in memory, and against what the hardware allows.

For each shape, batch and dtype (random weights): peak memory on the device, seconds a step and
tokens a second of `offload`; of `paired` in memory where the model fits; and the bound
max(compute, transfer). Compute is measured on the device with a few layers in memory, twice, and
extended in the number of layers; transfer is the bytes of the layers over the measured rate of
page-locked copies, the slower direction. Rows go to a JSON file.

    zolab bench offload --shape opt-1.3b opt-6.7b opt-13b opt-30b llama-8b
    zolab bench offload --shape opt-175b --layers 4 8 16 --batch 1x2048 --dtype float16
    zolab bench offload --shape tiny --batch 2x16 --dtype float32 --steps 2
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from zolab.bench import common
from zolab.bench.common import DTYPES, synthetic_batches, table
from zolab.models.shapes import auto_class, shape_config
from zolab.objectives import Batch, BatchLoss, CausalScorer
from zolab.optim import Offload, Paired, ZeroOrder
from zolab.optim.offload.blocks import Layout, find_blocks, host_bytes


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
    }


#: Config keys of each shape (public model cards), and the published peak in GB of ZO2 for it
#: (README of its repository at 4bca25c).
SHAPES: dict[str, tuple[dict[str, Any], float | None]] = {
    "opt-1.3b": (_opt(2048, 24, 32), 3.75),
    "opt-6.7b": (_opt(4096, 32, 32), 4.99),
    "opt-13b": (_opt(5120, 40, 40), 6.18),
    "opt-30b": (_opt(7168, 48, 56), 8.86),
    "opt-175b": (_opt(12288, 96, 96), 18.04),
    "llama-8b": (
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
        None,
    ),
    "tiny": ({**_opt(64, 4, 4), "vocab_size": 512, "max_position_embeddings": 64}, None),
}
#: Layers of the two models in memory from which compute is extended.
FEW, MORE = 1, 3


def main(argv: list[str] | None = None) -> int:
    """Measure every combination; print the table and write the file."""
    args = _parse(argv)
    device = common.settle(args)
    rates = copy_rates(device, args.copy_mb << 20)
    rows = []
    for shape in args.shape:
        config, published = SHAPES[shape]
        for layers in args.layers or [config["num_hidden_layers"]]:
            for dtype in args.dtype:
                for batch in args.batch:
                    row = {"shape": shape, "layers": layers, "dtype": dtype, "batch": batch}
                    row |= measure({**config, "num_hidden_layers": layers}, row, args, device)
                    row |= bound(row, rates)
                    whole = layers == config["num_hidden_layers"]
                    row["published_gb"] = published if whole else None
                    rows.append(row)
    common.report("offload", args.json, {**vars(args), "rates": rates}, rows, _table(rows))
    return 0


def measure(
    config: dict[str, Any], row: dict[str, Any], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Times and peaks of one combination."""
    rows, tokens = (int(x) for x in row["batch"].split("x"))
    vocab = config.get("vocab_size", 50272)
    (batch,) = synthetic_batches(1, rows, tokens, vocab, device)
    options = (batch, args.steps, device)
    few = timed(random_model(config, FEW, row["dtype"]).to(device), Paired(), *options)
    more = timed(random_model(config, MORE, row["dtype"]).to(device), Paired(), *options)
    layer = (more["seconds"] - few["seconds"]) / (MORE - FEW)
    out = {
        "tokens": rows * tokens,
        "compute_seconds": few["seconds"] + max(0.0, layer) * (config["num_hidden_layers"] - FEW),
    }
    whole = random_model(config, config["num_hidden_layers"], row["dtype"])
    layouts = [Layout(block.params, len(block.params)) for block in find_blocks(whole)]
    out["layer_bytes"] = sum(layout.size for layout in layouts)
    placement = Offload(tier=args.tier, slots=args.slots, upload_only=args.upload_only)
    placement.device = device
    offload = timed(whole, placement, *options)
    out |= {"offload_seconds": offload["seconds"], "offload_peak": offload["peak"]}
    out["upload_only"] = args.upload_only
    out["plan"] = str(placement.plan)
    del whole, placement, offload
    gc.collect()
    size = out["layer_bytes"] * 1.5 + more["peak"]
    if args.in_memory and (device.type == "cpu" or size < torch.cuda.mem_get_info()[0]):
        model = random_model(config, config["num_hidden_layers"], row["dtype"]).to(device)
        found = timed(model, Paired(), *options)
        out |= {"in_memory_seconds": found["seconds"], "in_memory_peak": found["peak"]}
    return out


def timed(
    model: nn.Module, placement: Paired, batch: Batch, steps: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of a step after the first two, and the peak of the device's memory."""
    optimizer = ZeroOrder(
        model.named_parameters(), lr=1e-7, placement=placement, model=model, seed=1
    )
    loss = BatchLoss(CausalScorer(model, pad_id=1), [batch])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps + 2):
        seconds.append(common.seconds(lambda: optimizer.step(loss), device))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"seconds": median(seconds[2:]), "peak": peak}


def random_model(config: dict[str, Any], layers: int, dtype: str) -> nn.Module:
    """A model whose layers all have the weights of the first: quick to make at any depth."""
    torch.manual_seed(0)
    shape = shape_config({**config, "num_hidden_layers": 1})
    model = auto_class("causal").from_config(shape, dtype=DTYPES[dtype]).eval()
    (first,) = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    for number in range(1, layers):
        layer = copy.deepcopy(first[0])
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
        first.append(layer)
    model.config.num_hidden_layers = layers
    return model


def copy_rates(device: torch.device, size: int) -> dict[str, float]:
    """Bytes a second from CPU memory to the device and back, in copies of `size` bytes."""
    host = host_bytes(size, pinned=device.type == "cuda")
    there = torch.empty(size, dtype=torch.uint8, device=device)
    return {
        "up": size / _seconds(lambda: there.copy_(host, non_blocking=True), device),
        "down": size / _seconds(lambda: host.copy_(there, non_blocking=True), device),
    }


def bound(row: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    """max(compute, transfer) in seconds, and how near the step came to it."""
    down = 0.0 if row["upload_only"] else row["layer_bytes"] / rates["down"]
    transfer = max(row["layer_bytes"] / rates["up"], down)
    best = max(row["compute_seconds"], transfer)
    return {
        "transfer_seconds": transfer,
        "bound_seconds": best,
        "fraction_of_bound": best / row["offload_seconds"],
        "tokens_per_second": row["tokens"] / row["offload_seconds"],
    }


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    return median([common.seconds(work, device) for _ in range(5)][1:])


def _table(rows: list[dict[str, Any]]) -> str:
    header = ("shape", "layers", "dtype", "batch", "tokens/s", "of bound", "peak GB", "published")
    lines = [
        (
            row["shape"], str(row["layers"]), row["dtype"], row["batch"],
            f"{row['tokens_per_second']:.1f}", f"{row['fraction_of_bound']:.2f}",
            f"{row['offload_peak'] / 1e9:.2f}", str(row["published_gb"] or "-"),
        )
        for row in rows
    ]  # fmt: skip
    return table(header, lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser("offload", __doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--layers", nargs="+", type=int, help="depths; default: the shape's own")
    parser.add_argument("--batch", nargs="+", default=["1x2048", "16x256"], metavar="ROWSxTOKENS")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16", "bfloat16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tier", default="cpu")
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--upload-only", action="store_true")
    parser.add_argument("--in-memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--copy-mb", type=int, default=256, help="size of a copy, for the rates")
    return parser.parse_args(argv)
