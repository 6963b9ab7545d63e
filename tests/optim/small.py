"""A linear loss, short runs and explicit estimates for the tests of parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.optim import StepRecord, ZeroOrder


def make(model: nn.Module, **options) -> ZeroOrder:
    options = {"lr": 1e-3, "eps": 1e-3, "seed": 3, "model": model, **options}
    return ZeroOrder(model.named_parameters(), **options)


def steps(optimizer: ZeroOrder, closure, num: int) -> list[StepRecord]:
    records = []
    for _ in range(num):
        optimizer.step(closure)
        records.append(optimizer.last)
    optimizer.flush()
    return records


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().view(-1) for p in model.parameters()])


class Linear(nn.Module):
    """A loss that is linear in its weights: every difference is exact but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(40, generator=generator, dtype=torch.float64))
        self.slope = torch.randn(40, generator=generator, dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        return self.w @ self.slope

    def closure(self, copies: int = 1) -> list[float]:
        out = self()
        return out.tolist() if out.dim() else [float(out.detach())] * copies


def explicit(optimizer: ZeroOrder, record: StepRecord) -> list[torch.Tensor]:
    """The gradient estimate of a step, written out."""
    out = []
    for info in optimizer.infos:
        g = torch.zeros(info.numel, dtype=torch.float64)
        for j, c in enumerate(record.coefficients):
            seed = optimizer.seed_of(record.step, j)
            z = optimizer.direction.z(info.pid, seed, 0, info.numel, g.device)
            g += c * z.double() / len(record.coefficients)
        out.append(g.view(info.param.shape))
    return out


class Matrix(nn.Module):
    """L = <G, W> + |b|²/2 with W (m, n): the slope along z is known exactly."""

    def __init__(self, m: int = 20, n: int = 14, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = nn.Parameter(torch.randn(m, n, generator=generator).to(dtype))
        self.b = nn.Parameter(torch.randn(5, generator=generator).to(dtype))
        self.g = torch.randn(m, n, generator=generator).to(dtype)

    def loss(self, copies: int = 1) -> list[float]:
        value = (self.g * self.w.detach()).sum() + self.b.detach().square().sum() / 2
        return [float(value)] * copies


class Net(nn.Module):
    """Two numbered layers between an input matrix and a head; smooth, so that c is never 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6, bias=False)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 7)])
        self.head = nn.Linear(7, 3)
        generator = torch.Generator().manual_seed(2)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.embed, *self.layers):
            x = layer(x).tanh()
        return self.head(x)


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Rows of step t: each step sees others."""
    generator = torch.Generator().manual_seed(100 + t)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(9) % 3


def losses_of(model: Net, t: int, tensors: bool):
    """The closure of step t: numbers, or tensors for a derivative."""
    x, y = batch(t)

    def closure(copies: int = 1) -> list:
        losses = [F.cross_entropy(part, y) for part in model(x.repeat(copies, 1)).chunk(copies)]
        return losses if tensors else [float(loss) for loss in losses]

    return closure
