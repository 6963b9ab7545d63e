"""Cells whose weights stream (`optimizer/placement=offload`): where they load from and lie."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab.checkpoint import copy_into, load_tensors, unique_parameters
from zolab.errors import UserError, first_line
from zolab.models import weight_files
from zolab.models.load import DTYPES, LoadedModel, load_model, model_source, pick_device
from zolab.models.shapes import build_empty
from zolab.optim import Offload
from zolab.optim.offload import TierPlan, free_memory, plan_tiers
from zolab.optim.offload.blocks import Layout, find_blocks, resident_bytes
from zolab.optim.offload.plan import size
from zolab.optim.offload.stores import FileChangedError

TARGET = "zolab.optim.Offload"


class Work:
    """What one attempt or replay of a cell loads, and the scratch files it may need for that.

    For a cell whose weights are in memory it loads the model and has no files. Work files are
    never needed by another attempt: journal and checkpoints rebuild the weights.

    Args:
        cell: checked config.
        run_dir: of the cell.
        name: of the attempt or replay.

    Attributes:
        folder: for the work files; None where weights do not stream.
    """

    def __init__(self, cell: dict[str, Any], run_dir: Path, name: str) -> None:
        self.cell = cell
        self.folder: Path | None = None
        placement = cell["optimizer"].get("placement", {})
        if placement.get("_target_") == TARGET:
            root = placement["folder"]
            home = run_dir / "offload" if root is None else Path(root) / run_dir.name
            self.folder = home / name

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self, all_attempts: bool = False) -> None:
        """Remove the files of this attempt, or of all of them."""
        if self.folder is None:
            return
        shutil.rmtree(self.folder.parent if all_attempts else self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # if nothing else is in it

    def load(self) -> LoadedModel:
        """The model; of one that streams, almost nothing is in memory.

        Its weights are mapped from their files. Where `model.dtype` is another type than theirs,
        they are first converted, tensor by tensor, into work files. Weights drawn at random
        (`model.init=random`) are in memory once.
        """
        config = self.cell["model"]
        if self.folder is not None:
            config = {**config, "device": "cpu"}
            if config["init"] != "random":
                config["path"] = _in_dtype(config, self.folder / "base")
        return load_model(config, self.cell["seed"])

    def take_weights(self, model: nn.Module, path: Path, names: frozenset[str]) -> None:
        """Give the model the weights `names` of a file made by `save_tensors`: read, or mapped."""
        tensors, _ = load_tensors(path)
        if self.folder is None:
            copy_into(model, tensors, names)
            return
        for name, param in unique_parameters(model).items():
            if name not in names:
                continue
            if tensors[name].dtype != param.dtype or tensors[name].shape != param.shape:
                raise UserError(f"{path}: {name} has another shape or dtype than the model")
            param.data = tensors[name]

    def prepare(self, placement: Offload) -> Offload:
        """Tell a placement where to compute and where its files may lie."""
        placement.device = pick_device(self.cell["model"]["device"])
        placement.folder = self.folder
        return placement


def plan_shape(
    shape: Any, kind: str, dtype: str, device: str, folder: Path, tier: str = "auto", slots: int = 3
) -> TierPlan:
    """What `tier` would do with a model here and now, without a weight of it.

    Args:
        shape: transformers config.
        kind: "causal" or "masked".
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "cuda:N".
        folder: where work files would lie.
        tier, slots: see `zolab.optim.Offload`.

    Returns:
        The plan; `lines()` prints it with what is needed and free.

    Raises:
        zolab.optim.offload.PlanError: it does not fit; the message holds the figures.
    """
    model = build_empty(shape, kind).to(DTYPES[dtype])
    blocks = find_blocks(model)
    sizes = [Layout(block.params, len(block.params)).size for block in blocks]
    staging = max(sizes) if device.startswith("cuda") else 0
    free = free_memory(device, folder)
    resident = resident_bytes(model, blocks)
    return plan_tiers(sizes, resident, free, tier=tier, slots=slots, staging=staging)


def report(learner: Any) -> list[str]:
    """Lines for the log: which block lies where, and what rounding does to the weights."""
    placement = getattr(learner, "placement", None)
    if not isinstance(placement, Offload) or placement.plan is None:
        return []
    lines = [f"offload: {placement.plan}"]
    if placement.transfer_error is not None:
        lines.append(f"offload: transfer={placement.transfer}: {placement.transfer_error}")
    return lines


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """A weight file that changed under way, as a UserError."""
    try:
        yield
    except FileChangedError as error:
        raise UserError(str(error)) from error


def _in_dtype(config: dict[str, Any], out: Path) -> str:
    """Path to load from: the model's own, or a copy of it as safetensors in `model.dtype`."""
    source = _folder_of(config)
    dtype = DTYPES[config["dtype"]]
    shards = sorted(source.glob("*.safetensors"))
    if shards and all(weight_files.is_in(shard, dtype) for shard in shards):
        return str(source)
    shards = shards or sorted(source.glob("pytorch_model*.bin"))  # these cannot be mapped
    _look_for_room(shards, dtype, out)
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        weight_files.convert(shard, out / weight_files.as_safetensors(shard.name), dtype)
    for file in source.iterdir():
        if file.name == "pytorch_model.bin.index.json" and shards[0].suffix == ".bin":
            weight_files.convert_index(file, out / "model.safetensors.index.json")
        elif file.is_file() and file.suffix != ".safetensors" and "pytorch_model" not in file.name:
            shutil.copyfile(file, out / file.name)
    return str(out)


def _folder_of(config: dict[str, Any]) -> Path:
    """Folder of a model's files; one of the hub is fetched, or found in the cache."""
    source = model_source(config["path"], config["init"])
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    wanted = ("*.json", "*.txt", "*.model")
    found = ""
    with _unreachable(config):
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            found = snapshot_download(
                source, revision=config.get("revision"), allow_patterns=[*wanted, weights]
            )
            if any(Path(found).glob(weights)):
                break
    return Path(found)


@contextlib.contextmanager
def _unreachable(config: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # what the hub's own errors are
        raise UserError(f"model.path = {config['path']!r}: {first_line(error)}") from error


def _look_for_room(shards: list[Path], dtype: torch.dtype, out: Path) -> None:
    need = sum(shard.stat().st_size for shard in shards)
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise UserError(
            f"model.dtype = {str(dtype).split('.')[1]}: the weights are of another type, and a "
            f"converted copy needs up to {size(need)} in {place}, where {size(free)} are free; set "
            "optimizer.placement.folder"
        )
