"""Small tensors on their way between host and device, without either waiting for the other."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device, put in line on its current stream.

    A copy from ordinary memory waits until everything queued on the stream is done; from pinned
    memory it waits for nothing, and torch keeps that memory until the copy is through.

    Args:
        tensor: on the host; any shape and dtype.
        device: where it goes.

    Returns:
        The tensor itself where it is there already.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def is_here(tensor: Tensor) -> bool:
    """Whether the host can look at a tensor's numbers without waiting for a device."""
    return tensor.device.type == "cpu"


class Fetched:
    """A copy of a tensor on its way to the host.

    Args:
        tensor: any shape and dtype; later changes of it are not seen.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.detach().clone()
            return
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The copy on the host; waits for what was queued before it, and for nothing else."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host
