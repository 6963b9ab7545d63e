"""Where a block's weights lie while it is away from the device: CPU memory, or a mapped file."""

from __future__ import annotations

import bisect
import ctypes
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zolab.optim.offload.blocks import ALIGN, Layout, host_bytes

_WILL_NEED = 3  # of madvise
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


class FileChangedError(RuntimeError):
    """A file that weights are read from was cut short or replaced while in use."""


class Guard:
    """Notices that a mapped file was cut short or written to, before it is touched again.

    Reading a mapping beyond the end of its file kills the process; a look at the size costs a
    microsecond. The file stays open, so that it may be renamed or deleted meanwhile.

    Args:
        path: the file, whole and as it should stay.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        self._was = self._look()

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._fd)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """FileChangedError with both sizes if the file is no longer what it was."""
        size, when = self._look()
        if size != self._was[0]:
            raise FileChangedError(
                f"{self.path}: {size} bytes, but {self._was[0]} when the run began: the weights "
                "in it are needed until the end"
            )
        if when != self._was[1]:
            raise FileChangedError(f"{self.path}: written to while the run reads its weights")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class HostStore:
    """A block in CPU memory: one flat run of bytes, page-locked where the device is CUDA.

    Args:
        layout: of the block.
        tensors: its present weights, copied.
        pinned: page-lock the memory.
    """

    tier = "cpu"
    flat: Tensor

    def __init__(self, layout: Layout, tensors: Sequence[Tensor], pinned: bool) -> None:
        self.layout = layout
        self.flat = host_bytes(layout.size, pinned)
        self.views = layout.views(self.flat)
        self.put(tensors)

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Take other weights."""
        for view, tensor in zip(self.views, tensors, strict=True):
            view.copy_(tensor)

    def due(self, num_pending: int) -> bool:
        """Whether updates that wait are to be stored when the block leaves: always."""
        return num_pending > 0

    def read_ahead(self) -> None:
        """Nothing to do: memory is memory."""

    def check(self) -> None:
        """Nothing can happen to it."""


class MappedStore:
    """A block in a file: mapped read-only in effect, rewritten as a whole now and then.

    The file it comes from is never written to. Updates are kept as scalars and applied whenever
    the block arrives; every `every` of them the block goes into a file of its own in `folder`.
    Such files are scratch: after a crash the run's journal rebuilds the weights, so none of them
    needs to survive.

    Args:
        name: of the block.
        layout: of the block.
        tensors: its present weights; used as they are where a file backs all of them, else
            written to a file.
        folder: for files of its own.
        every: updates between two writes; 0: only when clean weights are asked for.
    """

    tier = "disk"

    def __init__(
        self, name: str, layout: Layout, tensors: Sequence[Tensor], folder: Path, every: int
    ) -> None:
        self.name, self.layout, self.folder, self.every = name, layout, folder, every
        self._own: Path | None = None
        self._count = 0
        self.put(tensors)

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Take other weights: mapped ones as they are, others through a file."""
        paths = backing_files(tensors)
        if all(paths):
            self._use(tensors, sorted({path for path in paths if path}))
        else:
            self._write(tensors)

    def _use(self, tensors: Sequence[Tensor], paths: Sequence[str]) -> None:
        self.views = [tensor.detach() for tensor in tensors]
        self._guards = [Guard(path) for path in paths]

    def due(self, num_pending: int) -> bool:
        """Whether updates that wait are to be stored when the block leaves."""
        return bool(self.every) and num_pending >= self.every

    def take(self, flat: Tensor) -> None:
        """Store new weights, from uint8 (layout.size,) in CPU memory."""
        self._write(self.layout.views(flat))

    def read_ahead(self) -> None:
        """Ask the system to read the block before it is needed."""
        _advise(self.views, _WILL_NEED)

    def check(self) -> None:
        """FileChangedError if a file behind the block changed."""
        for guard in self._guards:
            guard.check()

    def _write(self, tensors: Sequence[Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        path = self.folder / f"{self.name}.{self._count}.safetensors"
        start = write_safetensors(path, self.layout, tensors)
        size = start + self.layout.size
        storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
        with torch.inference_mode(False):  # the parameters may later be used outside of it
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)[start:]
            self._use(self.layout.views(flat), [str(path)])
        if self._own is not None:
            self._own.unlink(missing_ok=True)  # its mapping lives as long as anyone looks at it
        self._own = path


def write_safetensors(path: Path, layout: Layout, tensors: Sequence[Tensor]) -> int:
    """Write a block as a safetensors file, one tensor after the other, without a copy of it.

    Args:
        path: appears whole or not at all.
        layout: where each tensor goes.
        tensors: on the CPU, of the layout's shapes and dtypes.

    Returns:
        Bytes in front of the data, a multiple of `ALIGN`.
    """
    header = {}
    for i, (begin, (shape, dtype, size)) in enumerate(
        zip(layout.offsets, layout.shapes, strict=True)
    ):
        spans = [begin, begin + size]
        header[f"{i:04d}"] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": spans}
        gap = -size % ALIGN
        if gap:  # the format allows no holes
            hole = [begin + size, begin + size + gap]
            header[f"{i:04d}.pad"] = {"dtype": "U8", "shape": [gap], "data_offsets": hole}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    temp = path.with_name(f".{path.name}.tmp")
    try:
        with temp.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor, (_, _, size) in zip(tensors, layout.shapes, strict=True):
                flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
                file.write(memoryview(flat.numpy()))
                file.write(b"\0" * (-size % ALIGN))
        os.replace(temp, path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot write {layout.size} bytes: {error.strerror}") from error
    return 8 + len(text)


def backing_files(tensors: Sequence[Tensor]) -> list[str | None]:
    """Path of the file each tensor is mapped from; None for memory (or where one cannot tell)."""
    maps = _mappings()
    begins = [low for low, _, _ in maps]
    out: list[str | None] = []
    for tensor in tensors:
        begin = tensor.data_ptr() if tensor.device.type == "cpu" and tensor.numel() else 0
        end = begin + tensor.numel() * tensor.element_size()
        at = bisect.bisect_right(begins, begin) - 1
        inside = begin > 0 and at >= 0 and end <= maps[at][1]
        out.append(maps[at][2] if inside and os.path.exists(maps[at][2]) else None)
    return out


def _mappings() -> list[tuple[int, int, str]]:
    """Address ranges of this process that files back, from the lowest on."""
    out = []
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith("/"):
                    low, high = (int(x, 16) for x in fields[0].split("-"))
                    out.append((low, high, fields[5].rstrip("\n")))
    except OSError:  # another system: weights count as memory and go into files of our own
        return []
    return out


def _advise(tensors: Sequence[Tensor], advice: int) -> None:
    """Tell the system about pages that lie wholly within each tensor; never fails."""
    page = os.sysconf("SC_PAGE_SIZE")
    madvise = getattr(_libc(), "madvise", None)
    if madvise is None:
        return
    for tensor in tensors:
        begin = -(-tensor.data_ptr() // page) * page
        end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
        if end > begin:
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except OSError:
        return None
