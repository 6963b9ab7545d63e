"""Linear layers whose products in float32 go by oneDNN on the CPU.

torch multiplies float32 matrices with MKL, which on processors of another make than its own takes
kernels of half the vector width: on an AMD processor with AVX-512 oneDNN needs half the time. Both
add in float32 and differ in the order, so results agree to rounding, not in bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

#: Products with fewer multiplications take oneDNN longer: 20 microseconds a call.
MIN_PRODUCT = 1 << 22

#: What Linux says of the processor.
CPUINFO = Path("/proc/cpuinfo")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias; by oneDNN where it can and is worth it, else as torch does it.

    Args:
        x: (..., n), any float dtype.
        weight: (m, n).
        bias: (m,) or None.

    Returns:
        (..., m).
    """
    if _is_for_onednn(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer that multiplies by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def multiplier(module: nn.Module) -> Callable[..., Tensor]:
    """How a linear layer multiplies: `linear` for those of `use_onednn`, else torch's."""
    return linear if isinstance(module, Linear) else F.linear


def use_onednn(model: nn.Module) -> int:
    """Make every plain `nn.Linear` of a model a `Linear`, in place; how many were.

    Weights, names and hooks stay as they are.
    """
    found = [module for module in model.modules() if type(module) is nn.Linear]
    for module in found:
        module.__class__ = Linear
    return len(found)


def use_torch(model: nn.Module) -> int:
    """Undo `use_onednn`; how many layers were changed."""
    found = [module for module in model.modules() if type(module) is Linear]
    for module in found:
        module.__class__ = nn.Linear
    return len(found)


@cache
def pays() -> bool:
    """Whether this processor is one that MKL leaves half the speed of: AMD's with AVX-512.

    Decided by what the processor says of itself, never by a timing, so that a run goes the same way
    each time it goes on.
    """
    if not is_there() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        told = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    makers = {line.partition(":")[2].strip() for line in told.splitlines() if "vendor_id" in line}
    return makers == {"AuthenticAMD"}


@cache
def is_there() -> bool:
    """Whether this torch has oneDNN's product, looked at with one; told once where it is wrong."""
    source = torch.Generator().manual_seed(0)
    # A generator of its own: a run's random state must not depend on whether somebody looked.
    x, weight = (torch.randn(rows, 32, generator=source) for rows in (64, 16))
    expected = (x.double() @ weight.double().T).float()
    try:
        found = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        if torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            return True
        why = "its product is wrong"
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
    warnings.warn(f"no oneDNN for linear layers: {why}", RuntimeWarning, stacklevel=2)
    return False


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        x.numel() * weight.shape[0] >= MIN_PRODUCT
        and all(t.dtype is torch.float32 and t.device.type == "cpu" for t in tensors)
        # The op has no derivative of any kind, and says so for none.
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and is_there()
    )
