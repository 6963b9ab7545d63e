"""Files of weights as safetensors in another dtype, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zolab.errors import UserError, first_line

#: Floats by their name in a header: what a conversion applies to.
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: All that the files of released models hold.
_TYPES = _FLOATS | {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def is_in(path: Path, dtype: torch.dtype) -> bool:
    """Whether all floats of a safetensors file have that dtype."""
    kinds = {entry["dtype"] for entry in _header(path)[0].values()}
    return kinds & _FLOATS.keys() <= {_NAMES[dtype]}


def convert(source: Path, out: Path, dtype: torch.dtype) -> None:
    """Write a file of weights as safetensors with its floats in another dtype.

    Args:
        source: *.safetensors, or a *.bin of torch.
        out: file to write.
        dtype: of what is a float in the source.

    Raises:
        UserError: the source is no such file, or holds a type that is not known here.
    """
    if source.suffix == ".bin":
        tensors = _read_bin(source)
        kinds = {name: str(_NAMES.get(t.dtype, t.dtype)) for name, t in tensors.items()}
        entries = {name: (kinds[name], t.shape) for name, t in tensors.items()}
        _write(source, out, entries, dtype, tensors.__getitem__)
        return
    from safetensors import safe_open

    header, metadata = _header(source)
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    entries = {name: (header[name]["dtype"], header[name]["shape"]) for name in order}
    with safe_open(source, framework="pt") as weights:
        _write(source, out, entries, dtype, weights.get_tensor, metadata)


def as_safetensors(name: str) -> str:
    """`pytorch_model-1-of-2.bin` -> `model-1-of-2.safetensors`; others stay."""
    if not name.endswith(".bin"):
        return name
    return name.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors"


def convert_index(source: Path, out: Path) -> None:
    """The index of several *.bin files as that of the converted ones."""
    index = json.loads(source.read_text())
    index["weight_map"] = {key: as_safetensors(v) for key, v in index["weight_map"].items()}
    out.write_text(json.dumps(index))


def _read_bin(source: Path) -> dict[str, Tensor]:
    """Tensors of a *.bin file, mapped; those written before torch 1.6 are read whole."""
    told = ""
    for mapped in (True, False):
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            told = first_line(error)
    raise UserError(f"{source}: not a file of weights ({told})")


def _write(
    source: Path,
    out: Path,
    entries: Mapping[str, tuple[str, Sequence[int]]],
    dtype: torch.dtype,
    tensor_of: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    spans, end = {}, 0
    for name, (stored, shape) in entries.items():
        kind = _NAMES[dtype] if stored in _FLOATS else stored
        if kind not in _TYPES:
            raise UserError(f"{source}: {name} is of type {kind}, which cannot be converted")
        width = math.prod(shape) * _TYPES[kind].itemsize
        spans[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + width]}
        end += width
    text = json.dumps({"__metadata__": metadata or {"format": "pt"}, **spans}).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in spans.items():
            tensor = tensor_of(name).to(_TYPES[entry["dtype"]])
            file.write(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Entries and metadata in front of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error
    metadata = found.pop("__metadata__", None)
    return found, metadata
