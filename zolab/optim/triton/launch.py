"""Tables in device memory, and launches over them.

A launch reads its parameters from a table and its seeds and coefficients from a second, small
buffer. Both stay where they are from step to step, so nothing but the buffer changes between two
launches of the same sweep.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zolab.optim.late import Late
from zolab.optim.moments import Divisor, Step, has_state, moments_of
from zolab.optim.sent import sent
from zolab.optim.triton import kernels

if TYPE_CHECKING:
    from zolab.optim.backend import Limit, Term

#: Elements of one program's tile; counters of every noise begin anew with it.
BLOCK = 1024
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Tables kept on the device: those of a walk in place come back every step.
_KEPT = 64
_MASK64 = (1 << 64) - 1
# Separate products and sums: a fused one has other bits.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@dataclass(frozen=True)
class Job:
    """What one launch does to one parameter.

    Attributes:
        weight: contiguous; float32, bfloat16 or float16.
        pid: parameter id.
        terms: as for `backend.sweep_`, at most one of them a step with moments; for a pair one
            term, whose coefficient is eps.
        mask: bool, or bits as `bits.pack_bits` makes them, or None.
        limit, split: as for `native.sweep`.
        offset: index of the first element of `weight` within its parameter.
        plus, minus: results of a pair.
    """

    weight: Tensor
    pid: int
    terms: Sequence[Term | Step]
    mask: Tensor | None = None
    limit: Limit | None = None
    split: int = 0
    offset: int = 0
    plus: Tensor | None = None
    minus: Tensor | None = None

    def row(self, first_term: int, first_program: int) -> tuple[int, ...]:
        """Its fields, in the order of `kernels`."""
        mask, limit = self.mask, self.limit
        form = 0 if mask is None else 2 if mask.dtype == torch.uint8 else 1
        edge = 0
        if limit is not None:
            # torch compares in the dtype of the weights.
            edge = _bits(float(torch.tensor(limit.threshold, dtype=self.weight.dtype)))
        return (
            self.weight.data_ptr(), self.weight.numel(), self.offset, self.pid,
            0 if mask is None else mask.data_ptr(), form,
            0 if limit is None else 1 if limit.below else 2, edge, self.split,
            first_term, len(self.terms), first_program,
            *(0 if t is None else t.data_ptr() for t in (self.plus, self.minus)),
            *(0 if t is None else t.data_ptr() for t in moments_of(self.terms)),
        )  # fmt: skip

    def goes_on_with(self, other: Job) -> bool:
        """Whether another sweep of the same memory is this one with more terms."""
        free = self.limit is None and other.limit is None
        free = free and not (has_state(self.terms) and has_state(other.terms))
        return free and self.mask is other.mask and self.offset == other.offset

    def programs(self) -> int:
        """Tiles that hold an element of it."""
        end = self.offset + self.weight.numel()
        return -(-end // BLOCK) - self.offset // BLOCK

    def aligned(self) -> bool:
        """Whether whole tiles begin at multiples of 16 bytes, for reads and writes in vectors."""
        tensors = (self.weight, self.plus, self.minus, *moments_of(self.terms))
        begins = [t.data_ptr() - self.offset * t.element_size() for t in tensors if t is not None]
        return all(begin % 16 == 0 for begin in begins)


class Sweep:
    """One launch over some parameters of one dtype; may be repeated with other coefficients.

    Args:
        kind: number of the noise.
        jobs: what to do; their tensors must outlive the sweep.
        kernel: of `kernels`.

    Attributes:
        coefficients: float32 (terms, 2) in device memory, each term's a and scale. What is written
            here, by the device too, is what the next launch goes by.
    """

    def __init__(self, kind: int, jobs: Sequence[Job], kernel: object) -> None:
        device = jobs[0].weight.device
        places: dict[tuple[Term | Step, ...], int] = {}  # those of a group share their terms
        every: list[Term | Step] = []
        rows: list[tuple[int, ...]] = []
        self.programs = 0
        for job in jobs:
            key = tuple(job.terms)
            if key not in places:
                places[key] = len(every)
                every += key
            rows.append(job.row(places[key], self.programs))
            self.programs += job.programs()
        self._rows = len(rows)
        self._table = _table(tuple(rows), device)
        self._terms = sent(torch.tensor(told(every) or [0], dtype=torch.int32), device)
        count = len(every)
        fields = self._terms[: count * kernels.TERM.value].view(torch.float32)
        self.coefficients = fields.view(count, kernels.TERM.value)[:, :2]
        for i, term in enumerate(every):
            if not isinstance(term, Step):
                for j, told_late in enumerate((term.a, term.scale)):
                    if isinstance(told_late, Late):
                        self.coefficients[i, j].copy_(told_late.value)
        self._levels = levels(device)
        self._kernel = kernel
        self._constants = {
            "KIND": kind,
            "DTYPE": DTYPES[jobs[0].weight.dtype],
            "ALIGNED": all(job.aligned() for job in jobs),
            "BLOCK": BLOCK,
        }
        if has_state(every):
            self._constants["STEPS"] = True

    def launch(self) -> None:
        """Put it in line on the current stream."""
        if self.programs:
            with _on(self._table.device):
                self._kernel[(self.programs,)](
                    self._table, self._rows, self._terms, self._levels,
                    **self._constants, **_OPTIONS,
                )  # fmt: skip


def spread(
    kind: int, out: Tensor, index: Tensor, stride: int, seed: int, pid: int, stream: int
) -> None:
    """out[i] = z from element index[i] * stride on: float32 (lines, width); index is int64."""
    lines, width = out.shape
    tiles = (width + BLOCK - 2) // BLOCK + 1  # a line may begin anywhere in a tile
    fields = [stride, width, tiles, pid, stream, _signed(seed & _MASK64)]
    told = sent(torch.tensor(fields, dtype=torch.int64), out.device)
    if out.numel():
        with _on(out.device):
            kernels.spread[(lines * tiles,)](
                out, index, told, levels(out.device), KIND=kind, BLOCK=BLOCK, **_OPTIONS
            )


_levels: dict[torch.device, Tensor] = {}
_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


def levels(device: torch.device) -> Tensor:
    """The levels of gauss8 in device memory."""
    from zolab.optim.noise import gauss8_table

    if device not in _levels:
        _levels[device] = gauss8_table().to(device)
    return _levels[device]


def _on(device: torch.device) -> AbstractContextManager:
    """Launches go to the current device, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    # One for each stream: memory that is given back is used again in the order of its stream.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (rows, device, stream)
    if key not in _tables:
        if len(_tables) >= _KEPT:
            _tables.popitem(last=False)
        _tables[key] = sent(torch.tensor(rows, dtype=torch.int64), device)
    _tables.move_to_end(key)
    return _tables[key]


def told(terms: Sequence[Term | Step]) -> list[int]:
    """What `kernels` reads of some terms: their fields, then those of their steps."""
    out, behind = [], []
    begin = len(terms) * kernels.TERM.value
    for term in terms:
        then, step = term, 0
        if isinstance(term, Step):
            then, step = term.then, begin + len(behind)
            behind += _step(term)
        out += [_bits(then.a), _bits(then.scale), *_key(then.seed), int(then.stochastic), step]
    return out + behind


def _step(step: Step) -> list[int]:
    by = step.divisor or Divisor()
    how = 3 if step.sign else 0 if step.divisor is None else 2 if by.root else 1
    out = [len(step.looks), how, _bits(by.floor), _bits(by.times), _bits(by.plus)]
    for look in step.looks:
        out += [len(look.probes), look.first is not None, look.second is not None]
        numbers = (*(look.first or (1.0, 0.0)), *(look.second or (1.0, 0.0)))
        out += [_bits(number) for number in numbers]
        for c, seed in look.probes:
            out += [_bits(c), *_key(seed)]
    return out


def _key(seed: int) -> tuple[int, int]:
    """A seed as two signed words, the low one first."""
    return struct.unpack("<ii", struct.pack("<Q", seed & _MASK64))


def _bits(value: float | Late) -> int:
    """Bits of a float64 rounded to float32, as a signed integer; 0 in place of a late one."""
    if isinstance(value, Late):
        return 0
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
