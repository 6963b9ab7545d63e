"""Adapters whose matrices are tensor-train factors (AdaZeta, arXiv 2406.18060)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.errors import UserError
from zolab.models.tuning.base import (
    Tuning,
    find_targets,
    freeze_base,
    matching_modules,
    write_adapter,
)
from zolab.optim.parameters import canonical_name, is_adapter

#: The last layer of each attention and of each feed-forward, by the names that models give them.
LAST_LAYERS = (
    ("out_proj", "fc2"),
    ("o_proj", "down_proj"),
    ("attention.dense", "dense_4h_to_h"),
    ("attention.output.dense", "output.dense"),
    ("self_attn.dense", "fc2"),
    ("self_attention.dense", "dense_4h_to_h"),
    ("attn.c_proj", "mlp.c_proj"),
)
#: Sizes of a tensor train's dimensions lie near this, as in the paper's shapes.
DIMENSION = 8
PEFT_TYPE = "ZOLAB_TENSOR_TRAIN"


class TensorTrain(Tuning):
    """y + U relu(D y) behind each attention and feed-forward, D and U as tensor trains.

    Source: AdaZeta (arXiv 2406.18060), section 3.1: a matrix of M x N is read as a tensor of the
    dimensions k_1 ... k_2o with k_1 ... k_o = M and k_(o+1) ... k_2o = N, and held as the product
    of factors G_i of r x k_i x r (eq. 3); the base is frozen. Ours: how M and N are cut into
    dimensions (near 8), and that the last factor of U is zero at the start, so that training begins
    at the pretrained model, as with LoRA.

    Args:
        rank: r.
        bottleneck: rows of D.
        targets: names of the layers with an adapter behind them; None for the last of each
            attention and feed-forward.
    """

    kind = "tensor_train"
    adapter_format = "zolab"
    merges = False

    def __init__(
        self, rank: int = 5, bottleneck: int = 64, targets: list[str] | None = None
    ) -> None:
        self.rank, self.bottleneck, self.targets = rank, bottleneck, targets

    def apply(self, model: nn.Module, num_words: int) -> None:
        what = "last layers of attention and feed-forward"
        targets = self.targets or find_targets(model, LAST_LAYERS, what)
        self._put(model, matching_modules(model, targets))

    def _put(self, model: nn.Module, names: list[str]) -> None:
        for name in names:
            parent, _, child = name.rpartition(".")
            layer = model.get_submodule(name)
            adapted = Adapted(layer, _width(layer), self.bottleneck, self.rank)
            setattr(model.get_submodule(parent), child, adapted.to(layer.weight.device))
        freeze_base(model)
        self._names = names

    def save_adapter(self, model: nn.Module, out: Path, base: str, kind: str) -> None:
        """Write the factors; `load_tensor_train` puts them into the base again."""
        named = {canonical_name(name): param for name, param in model.named_parameters()}
        config = {
            "peft_type": PEFT_TYPE,
            "base_model_name_or_path": base,
            "kind": kind,
            "rank": self.rank,
            "bottleneck": self.bottleneck,
            "modules": self._names,
        }
        write_adapter(
            out, config, {name: param for name, param in named.items() if is_adapter(name)}
        )


class Adapted(nn.Module):
    """A linear layer with an adapter behind it.

    Args:
        base_layer: the layer.
        width: of its output.
        bottleneck: width inside the adapter.
        rank: of its tensor trains.
    """

    def __init__(self, base_layer: nn.Module, width: int, bottleneck: int, rank: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_down = TensorTrainLinear(width, bottleneck, rank)
        self.adapter_up = TensorTrainLinear(bottleneck, width, rank)
        with torch.no_grad():
            self.adapter_up.last.zero_()

    @property
    def weight(self) -> Tensor:
        """Of the layer itself: some models look at its dtype."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        hidden = F.relu(self.adapter_down(y.float()))
        return y + self.adapter_up(hidden).to(y.dtype)


class TensorTrainLinear(nn.Module):
    """x W^T with W (width_out, width_in) as the product of tensor-train factors.

    Args:
        width_in, width_out: of the matrix.
        rank: between two factors; 1 at both ends.
    """

    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.shape = (width_out, width_in)
        sizes = [*dimensions(width_out), *dimensions(width_in)]
        self.num_factors = len(sizes)
        # entries of W get the variance 1 / width_in: a sum over the ranks of products of factors
        std = (width_in * rank ** (len(sizes) - 1)) ** (-0.5 / len(sizes))
        for number, size in enumerate(sizes):
            left = 1 if number == 0 else rank
            right = 1 if number == len(sizes) - 1 else rank
            factor = nn.Parameter(torch.randn(left, size, right) * std)
            self.register_parameter(f"factor_{number}", factor)

    @property
    def last(self) -> nn.Parameter:
        """The last factor."""
        return self.get_parameter(f"factor_{self.num_factors - 1}")

    def matrix(self) -> Tensor:
        """W, (width_out, width_in)."""
        product = torch.ones(1, 1)
        for number in range(self.num_factors):
            factor = getattr(self, f"factor_{number}")
            left, size, right = factor.shape
            product = product.to(factor) @ factor.reshape(left, size * right)
            product = product.reshape(-1, right)
        return product.reshape(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix())


def dimensions(size: int) -> list[int]:
    """A width as a product of factors near `DIMENSION`, ascending, as even as its primes allow."""
    count = max(1, round(math.log(size, DIMENSION)))
    parts = [1] * count
    for prime in sorted(_primes(size), reverse=True):
        parts[parts.index(min(parts))] *= prime
    return sorted(parts)


def _primes(size: int) -> list[int]:
    found, divisor = [], 2
    while size > 1:
        while size % divisor == 0:
            found.append(divisor)
            size //= divisor
        divisor += 1
    return found


def _width(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.nf


def load_tensor_train(model: nn.Module, folder: Path) -> nn.Module:
    """Put exported adapters into the model they were trained on.

    Args:
        model: the base; changed in place.
        folder: what `zolab export` wrote.

    Raises:
        UserError: the folder holds no such adapters.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    if config.get("peft_type") != PEFT_TYPE:
        raise UserError(f"{folder}: no tensor-train adapters, but {config.get('peft_type')}")
    TensorTrain(config["rank"], config["bottleneck"])._put(model, config["modules"])
    named = {canonical_name(name): param for name, param in model.named_parameters()}
    with torch.no_grad():
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            named[name].copy_(tensor)
    return model
