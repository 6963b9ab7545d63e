"""Blocks in fewer bytes on their way to the device; the full-precision master stays behind.

What the device computes with is rounded, so losses are those of a slightly different model: off
by default, and the error is measured and reported. Updates are made to the master, by the host, so
replays and saved weights are exact all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.optim.offload.blocks import ALIGN, Layout

#: Elements that share a scale.
GROUP = 128
FORMATS = ("none", "float16", "bfloat16", "float8", "int8")
_PLAIN = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class TransferError:
    """How far the rounded weights are from the master, over everything measured.

    Attributes:
        relative: root mean square of the difference over that of the weights.
        largest: largest difference of one weight.
    """

    relative: float
    largest: float

    def __str__(self) -> str:
        return f"relative error {self.relative:.2e}, largest {self.largest:.2e}"


class Codec:
    """Packs the parameters of a block; vectors (norm gains, biases) travel as they are.

    Args:
        form: float16, bfloat16, float8 (e4m3, one scale for `GROUP` elements) or int8 (likewise).
        layout: of the block.
    """

    def __init__(self, form: str, layout: Layout) -> None:
        self.form, self.layout = form, layout
        self._spans: list[tuple[int, int, int]] = []  # where, bytes of codes, bytes of scales
        end = 0
        for shape, dtype, size in layout.shapes:
            codes, scales = self._sizes(shape, dtype, size)
            self._spans.append((end, codes, scales))
            end += -(-codes // ALIGN) * ALIGN + -(-scales // ALIGN) * ALIGN
        self.size = end

    def encode(self, tensors: Sequence[Tensor], packed: Tensor) -> None:
        """Round the parameters into `packed`, uint8 (at least `size`,)."""
        for i, tensor in enumerate(tensors):
            codes, scales = self._parts(packed, i)
            flat = tensor.reshape(-1)
            if codes.dtype == flat.dtype:
                codes.copy_(flat)
            elif scales is None:
                limit = torch.finfo(codes.dtype).max
                codes.copy_(flat.clamp(-limit, limit))
            else:
                self._encode_groups(flat, codes, scales)

    def decode(self, packed: Tensor, tensors: Sequence[Tensor]) -> None:
        """The other way, into the parameters' own shapes and dtypes."""
        for i, tensor in enumerate(tensors):
            codes, scales = self._parts(packed, i)
            if scales is None:
                tensor.view(-1).copy_(codes)
                continue
            flat, whole = tensor.view(-1), tensor.numel() // GROUP * GROUP
            wide = codes[:whole].view(-1, GROUP).float() * scales[: whole // GROUP, None]
            flat[:whole].copy_(wide.view(-1))
            if whole < len(flat):
                flat[whole:].copy_(codes[whole:].float() * scales[-1])

    def error(self, tensors: Sequence[Tensor]) -> tuple[float, float, float]:
        """Sum of squared differences, sum of squares, largest difference over some parameters."""
        packed = torch.empty(self.size + ALIGN, dtype=torch.uint8)
        packed = packed[-packed.data_ptr() % ALIGN :]
        self.encode(tensors, packed)
        back = [torch.empty_like(tensor) for tensor in tensors]
        self.decode(packed, back)
        gaps = [(a.double() - b.double()).abs() for a, b in zip(tensors, back, strict=True)]
        return (
            sum(float(gap.square().sum()) for gap in gaps),
            sum(float(tensor.double().square().sum()) for tensor in tensors),
            max((float(gap.max()) for gap in gaps if gap.numel()), default=0.0),
        )

    def _kind(self, shape: torch.Size, dtype: torch.dtype) -> torch.dtype:
        """Dtype in which a parameter travels."""
        if len(shape) < 2 or not dtype.is_floating_point:
            return dtype
        kind = _PLAIN.get(self.form) or (_FLOAT8 if self.form == "float8" else torch.int8)
        return kind if kind.itemsize < dtype.itemsize else dtype

    def _sizes(self, shape: torch.Size, dtype: torch.dtype, size: int) -> tuple[int, int]:
        kind = self._kind(shape, dtype)
        count = size // dtype.itemsize
        grouped = kind != dtype and kind not in _PLAIN.values()
        return count * kind.itemsize, 4 * -(-count // GROUP) if grouped else 0

    def _parts(self, packed: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
        shape, dtype, _ = self.layout.shapes[i]
        begin, codes, scales = self._spans[i]
        kind = self._kind(shape, dtype)
        second = begin + -(-codes // ALIGN) * ALIGN
        first = packed[begin : begin + codes].view(kind)
        return first, packed[second : second + scales].view(torch.float32) if scales else None

    def _encode_groups(self, flat: Tensor, codes: Tensor, scales: Tensor) -> None:
        top = 127.0 if codes.dtype == torch.int8 else torch.finfo(codes.dtype).max
        whole = len(flat) // GROUP * GROUP
        for part, out, scale in (
            (flat[:whole].view(-1, GROUP), codes[:whole].view(-1, GROUP), scales[: whole // GROUP]),
            (flat[whole:].view(1, -1), codes[whole:].view(1, -1), scales[whole // GROUP :]),
        ):
            if not part.numel():
                continue
            wide = part.float()
            unit = wide.abs().amax(dim=1) / top
            scale.copy_(unit)
            wide = wide / unit.masked_fill(unit == 0.0, 1.0)[:, None]
            out.copy_(wide.round() if codes.dtype == torch.int8 else wide.clamp(-top, top))


def check_form(form: str, device: torch.device) -> None:
    """ValueError for a format that does not exist, or that the device has no instructions for."""
    if form not in FORMATS:
        raise ValueError(f"placement.transfer = {form!r}: expected one of {', '.join(FORMATS)}")
    if form == "float8" and not has_float8(device):
        have = torch.cuda.get_device_capability(device) if device.type == "cuda" else device.type
        raise ValueError(
            f"placement.transfer = 'float8': {device} has no 8-bit floats (it is {have}; CUDA "
            "devices have them from capability (8, 9) on): use int8, bfloat16 or float16"
        )


def has_float8(device: torch.device) -> bool:
    """Whether a device converts 8-bit floats: CUDA from capability 8.9 on, or where it works."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 9)
    try:
        torch.ones(2, device=device).to(_FLOAT8).float()
    except (RuntimeError, TypeError):
        return False
    return True
