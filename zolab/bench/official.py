"""MeZO's published step, restated in plain torch as the baseline of time.

Source: MeZO (arXiv 2305.17333), Algorithm 1, and the public trace of its program, which a test
repeats with this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


class OfficialStep:
    """Four walks over the weights, each drawing every z again as a whole tensor.

    Global generator, reseeded before each walk; the update is a walk of its own.

    Args:
        params: trained parameters in the order in which they are drawn.
        lr: learning rate.
        eps: perturbation scale.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, eps: float) -> None:
        self.params = list(params)
        self.lr, self.eps = lr, eps

    @torch.no_grad()
    def __call__(self, loss: Callable[[], float], seed: int) -> tuple[float, float, float]:
        """One step; returns both losses and the projected gradient.

        Args:
            loss: the loss at the weights as they are.
            seed: of the step's direction, for torch's global generator.
        """
        self._walk(seed, 1.0)
        plus = loss()
        self._walk(seed, -2.0)
        minus = loss()
        grad = (plus - minus) / (2 * self.eps)
        self._walk(seed, 1.0)
        torch.manual_seed(seed)
        for param in self.params:
            param.data = param.data - self.lr * (grad * self._draw(param))
        return plus, minus, grad

    def _walk(self, seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for param in self.params:
            param.data = param.data + scale * self._draw(param) * self.eps

    @staticmethod
    def _draw(param: nn.Parameter) -> torch.Tensor:
        return torch.normal(0.0, 1.0, param.shape, device=param.device, dtype=param.dtype)
