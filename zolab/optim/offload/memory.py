"""How much memory is free: of the device, of this machine (or its control group), of a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from zolab.optim.offload.plan import Free

_UNKNOWN = 1 << 62


def free_memory(device: str, folder: Path) -> Free:
    """What a run on `device` may take now.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        folder: where work files would go; it need not exist yet.
    """
    return Free(free_device(device), free_host(), free_disk(folder))


def free_device(device: str) -> int | None:
    """Free bytes of a CUDA device, what this process's allocator holds unused included."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host() -> int:
    """Bytes of CPU memory that can still be taken: of the machine, or of the control group."""
    found = [_UNKNOWN]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        top, now = _read(limit).strip(), _read(used).strip()
        if top.isdigit() and now.isdigit():
            found.append(int(top) - int(now) + _cached())
    return max(0, min(found))


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _cached() -> int:
    """Bytes of the control group that are file pages nobody writes to: they can go at any time."""
    for line in _read("/sys/fs/cgroup/memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
