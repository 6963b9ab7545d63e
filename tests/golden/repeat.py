"""Repeating a recorded run with our optimizer, step by step, and comparing every number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tests.golden.batches import loss_of
from tests.golden.programs import Watched, expected_rates, make_optimizer, planned_scales
from tests.golden.start import build, summary
from tests.golden.trace import Trace, read_trace
from zolab.optim import Reference, ZeroOrder
from zolab.optim.parameters import ParamInfo
from zolab.optim.placements import Placement


@dataclass(frozen=True)
class Bars:
    """How close is close: absolute for losses and parameters, relative (above 1) for slopes."""

    loss: float
    slope: float
    param: float

    def total(self, count: int) -> float:
        """Bar of a sum over `count` entries; float32 entries are off independently."""
        return self.param * (math.sqrt(count) if self.param > 1e-9 else 1.0)


def bars_of(trace: Trace) -> Bars:
    if trace.dtype == torch.float64:
        return Bars(1e-9, 1e-9, 1e-9)
    # LoRA on llama amplifies what float32 rounds away.
    scale = 10.0 if trace.arch == "llama" and trace.tune == "lora" else 1.0
    return Bars(2e-4 * scale, 5e-3 * scale, 1e-4 * scale)


def near(got: list[float], want: list[float], bar: float, what: str) -> None:
    assert len(got) == len(want), f"{what}: {len(got)} numbers, expected {len(want)}"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert abs(a - b) <= bar, f"{what}[{i}] = {a!r}, expected {b!r} (off by {abs(a - b):.3g})"


def near_relative(got: list[float], want: list[float], bar: float, what: str) -> None:
    assert len(got) == len(want), f"{what}: {len(got)} numbers, expected {len(want)}"
    for a, b in zip(got, want, strict=True):
        assert abs(a - b) <= bar * max(1.0, abs(b)), f"{what} = {a!r}, expected {b!r}"


def check_start(trace: Trace, named: dict[str, nn.Parameter]) -> None:
    """The rebuilt weights and the first noise are those of the file."""
    for name, shape in trace.noise:
        assert tuple(named[name].shape) == shape, f"shape of {name}"
        assert name in trace.checksums, f"no checksum of {name}"
    for name, want in trace.checksums.items():
        if name in named:  # what is not noised and not part of the model changes nothing
            near(summary(named[name]), want, 1e-9, f"init of {name}")
    infos = [ParamInfo(name, pid, named[name]) for pid, name in enumerate(trace.order)]
    noise = Reference()
    noise.setup(infos, 0)
    seeds = trace.steps[0]["seeds"]
    bar = 1e-12 if trace.dtype == torch.float64 else 4e-6
    for info in infos:
        if info.name in trace.z_first and seeds:
            z = noise.z(info.pid, seeds[0], 0, 4, info.data.device).tolist()
            near(z, trace.z_first[info.name], bar, f"z of {info.name}")


def check_step(
    trace: Trace, optimizer: ZeroOrder, number: int, named: dict[str, nn.Parameter], bars: Bars
) -> None:
    """Losses, slopes and weights after one step."""
    want, record = trace.steps[number], optimizer.last
    what = f"step {want['step']}"
    near(list(record.losses), want["losses"], bars.loss, f"{what}: losses")
    slopes = list(record.coefficients)
    if "projected_grad" in want:
        near_relative(slopes[-1:], [want["projected_grad"]], bars.slope, f"{what}: projected_grad")
    if "projected_grads_from_losses" in want:
        near_relative(
            slopes, want["projected_grads_from_losses"], bars.slope, f"{what}: projected_grads"
        )
    for name, numbers in want["params"].items():
        got = summary(named[name])
        near(got[2:], numbers[2:], bars.param, f"{what}: entries of {name}")
        near(got[:2], numbers[:2], bars.total(named[name].numel()), f"{what}: sum, norm of {name}")
    drift = want.get("restore_max_abs_diff")
    if drift is not None and isinstance(optimizer.placement, Watched):
        assert optimizer.placement.drift <= 4 * drift, f"{what}: the walk leaves too much"


def run_trace(path: Path, placement: Placement | None = None) -> None:
    """Repeat a recorded run; AssertionError where it differs, NotUnderstood where it cannot.

    Args:
        path: the trace.
        placement: of the repetition; None: the program's own in-place walk.
    """
    trace = read_trace(path)
    model, named = build(trace)
    check_start(trace, named)
    optimizer, seeds = make_optimizer(trace, model, named, placement)
    bars = bars_of(trace)
    for number, (want, lr) in enumerate(zip(trace.steps, expected_rates(trace), strict=True)):
        assert want["step"] == number
        for group in optimizer.param_groups:
            group["lr"] = lr
        decoded: list[str] = []
        optimizer.step(loss_of(trace, model, number, decoded))
        optimizer.flush()
        assert seeds.of(number + 1) == want["seeds"], f"step {number}: seeds"
        if "sparse_seed" in want:
            assert seeds.sparse[number + 1] == want["sparse_seed"]
        if "perturb_scales" in want:
            assert planned_scales(optimizer, trace, number + 1) == want["perturb_scales"]
        if "decoded" in want:
            assert decoded == want["decoded"], f"step {number}: decoded"
        check_step(trace, optimizer, number, named, bars)
