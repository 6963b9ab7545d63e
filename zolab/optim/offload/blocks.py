"""The blocks of a model: what comes and goes as one piece, and what stays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Parameters begin at multiples of this within a block, so that kernels see aligned memory.
ALIGN = 64


class NoBlocksError(ValueError):
    """The model has no list of layers."""


@dataclass(frozen=True)
class Block:
    """One layer of the model.

    Attributes:
        name: of the module, such as "model.layers.3".
        module: its hooks bring the weights and send them away.
        params: its own parameters, trained ones first, each once; none is used outside the block.
    """

    name: str
    module: nn.Module
    params: tuple[nn.Parameter, ...]


def find_blocks(model: nn.Module, trained: frozenset[int] = frozenset()) -> list[Block]:
    """The layers of a model, in the order of its modules.

    A block is a member of an outermost `nn.ModuleList` whose members all own parameters: the layers
    of every transformers decoder and encoder. Parameters that two blocks share, or that something
    outside uses as well (tied ones), belong to no block.

    Args:
        model: any module.
        trained: ids (`id(param)`) of the parameters that an update may change; they come first.

    Raises:
        NoBlocksError: there is no such list.
    """
    lists: list[str] = []
    for name, module in model.named_modules():
        if any(name == known or name.startswith(known + ".") for known in lists):
            continue
        members = list(module) if isinstance(module, nn.ModuleList) else []
        if members and all(any(True for _ in member.parameters()) for member in members):
            lists.append(name)
    found = [
        (f"{name}.{i}", member)
        for name in lists
        for i, member in enumerate(model.get_submodule(name))
    ]
    if not found:
        raise NoBlocksError(
            f"{type(model).__name__} has no list of layers (nn.ModuleList): nothing can be brought "
            "and sent away piece by piece"
        )
    users: dict[int, set[str]] = {}
    for name, module in model.named_modules():
        home = next((b for b, _ in found if name == b or name.startswith(b + ".")), "")
        for param in module.parameters(recurse=False):
            users.setdefault(id(param), set()).add(home)
    blocks = []
    for name, module in found:
        own = [p for p in module.parameters() if users[id(p)] == {name}]
        own.sort(key=lambda p: id(p) not in trained)  # stable: module order within each half
        blocks.append(Block(name, module, tuple(own)))
    return blocks


def resident_bytes(model: nn.Module, blocks: Sequence[Block]) -> int:
    """Bytes of the parameters and buffers that are in no block, tied ones counted once."""
    inside = {id(param) for block in blocks for param in block.params}
    outside = {id(p): p for p in model.parameters() if id(p) not in inside}
    return sum(t.numel() * t.element_size() for t in (*outside.values(), *model.buffers()))


class Layout:
    """Where the parameters of a block lie in one flat run of bytes.

    Args:
        params: trained ones first.
        num_trained: how many of them an update may change.

    Attributes:
        size: bytes in all.
        trained_size: bytes at the front that an update may change.
    """

    def __init__(self, params: Sequence[Tensor], num_trained: int) -> None:
        self.shapes = [(p.shape, p.dtype, p.numel() * p.element_size()) for p in params]
        self.offsets, end, self.trained_size = [], 0, 0
        for i, (_, _, size) in enumerate(self.shapes):
            self.offsets.append(end)
            end += -(-size // ALIGN) * ALIGN
            if i < num_trained:
                self.trained_size = end
        self.size = end

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters within `flat`, uint8 (at least `size`,), sharing its memory."""
        out = []
        for start, (shape, dtype, size) in zip(self.offsets, self.shapes, strict=True):
            out.append(flat[start : start + size].view(dtype).view(shape))
        return out


def host_bytes(size: int, pinned: bool) -> Tensor:
    """uint8 (size,) in CPU memory, aligned; page-locked if `pinned`.

    Memory is registered with CUDA rather than asked from its allocator, which rounds sizes up to
    a power of two.
    """
    flat = torch.empty(size + ALIGN, dtype=torch.uint8)
    flat = flat[-flat.data_ptr() % ALIGN :][:size]
    if pinned and size:
        code = torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), size, 0)
        if int(code) != 0:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return flat
