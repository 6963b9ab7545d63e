"""MeZO's published step, restated in plain torch as the baseline of time.

Source: MeZO (arXiv 2305.17333), Algorithm 1, and the public trace of its program, which a test
repeats with this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def answer_loss(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's last token, by way of every token of every row.

    So the published program scores options: logits moved against the tokens by one, copied, and a
    log-softmax over the whole vocabulary at all positions, in the model's dtype; what is not part
    of the option is left out only then.

    Args:
        logits: (rows, tokens, vocabulary).
        input_ids: int64 (rows, tokens), padded on the right.
        attention_mask: (rows, tokens), 0 on padding.
    """
    log_probs = F.log_softmax(logits[:, :-1].contiguous(), dim=-1)
    found = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    last = attention_mask.sum(1, keepdim=True) - 1
    option = torch.arange(1, input_ids.shape[1], device=input_ids.device) == last
    return -(found * option).sum(1).mean()


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
