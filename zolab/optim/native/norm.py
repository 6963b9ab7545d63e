"""Layer normalisation of both halves of a batch, each by weights of its own, by native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from zolab.optim import native
from zolab.optim.native import probe
from zolab.optim.native.pack import address
from zolab.optim.native.thin import is_plain


def takes_norm(*weights: Tensor) -> bool:
    """Whether there is `Norm` for some weights: all float32 on the CPU, of one length."""
    alike = len({tuple(w.shape) for w in weights}) == 1 and weights[0].dim() == 1
    able = all(w.dtype is torch.float32 and w.is_cpu for w in weights)
    return alike and able and native.available()


class Norm:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last dimension of x.

    Args:
        weight, bias: (n,) for the first half of the rows, and for the second; contiguous.
        eps: beside the variance.

    Raises:
        ValueError: a tensor is something else.
        RuntimeError: the kernels are not available.
    """

    def __init__(
        self, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], eps: float
    ) -> None:
        self.on = native._library()
        self.n = len(weight[0])
        self._asked = probe.Norm(n=self.n, eps=eps)
        self._lots = (probe.Lot * 1)()
        self._lots[0] = self.on.lot("zo_norm", self._asked, 0, unit=1, weight=self.n)
        self.aim(weight, bias)

    def aim(self, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor]) -> None:
        """Take other weights of the same length; arguments and errors as for a new one."""
        for half in range(2):
            at = address("weight", weight[half], torch.float32, self.n)
            self._asked.weight[half] = at
            self._asked.bias[half] = address("bias", bias[half], torch.float32, self.n)
        self._kept = weight, bias

    def rest(self) -> None:
        """Let go of the weights until `aim` brings others."""
        self._kept = None

    def takes(self, x: Tensor) -> bool:
        """Whether an input is what it is made for: (rows, ..., n), contiguous, float32, CPU, an
        even number of rows."""
        return is_plain(x) and x.shape[-1] == self.n and x.shape[0] % 2 == 0

    def __call__(self, x: Tensor) -> Tensor:
        """Of the shape of x.

        Args:
            x: see `takes`.
        """
        out, asked, rows = torch.empty_like(x), self._asked, x.numel() // self.n
        asked.out, asked.x, asked.rows = out.data_ptr(), x.data_ptr(), rows
        self._lots[0].count = rows
        self.on.run_packed(self._lots, 1, rows * self.n)
        return out
