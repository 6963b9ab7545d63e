"""Sweeps over weights, kind by kind, against an in-place pass of plain torch over the same memory.

A sweep's floor is what it must move: one read and one write of the weights, for a pair one read and
two writes, under a rule with state its moments as well (such a sweep is the way back of a walk, the
update and the next perturbation). `fraction_of_bandwidth` is the time of those bytes at the
measured rate over the sweep's own, in turns, so that other load on the machine cancels. Without a
mask, with one of bytes, and with few weights moving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zolab.bench import common
from zolab.bench.common import DTYPES, spread, table
from zolab.optim import fast
from zolab.optim.backend import Term, pair, sweep_
from zolab.optim.bits import Places
from zolab.optim.directions import Gaussian, Rademacher
from zolab.optim.moments import Divisor, Look, Step

NOISES = ("gauss", "gauss8", "rademacher")


def main(argv: list[str] | None = None) -> int:
    """Measure every kind, dtype and backend; print the table and write the file."""
    parser = common.parser("kernels", __doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--noise", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--backend", choices=common.BACKENDS, help="default: all there are")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    device = common.settle(args)
    found = common.chosen_backends(args.backend, device)
    rows = []
    for dtype in args.dtype:
        torch.manual_seed(0)
        weight = torch.randn(args.elements, device=device).to(DTYPES[dtype])
        for noise in args.noise:
            for name in found:
                with common.backend(name):
                    for work, (passes, run) in _works(noise, weight).items():
                        row = {"kernel": work, "noise": noise, "backend": name, "dtype": dtype}
                        rows.append(row | _measure(run, passes, weight, args.rounds))
    lines = {dtype: common.roofline(device, dtype) for dtype in args.dtype}
    common.report("kernels", args.json, vars(args), rows, _table(rows), roofline=lines)
    return 0


def _works(noise: str, weight: Tensor) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Kernel -> reads and writes of the weights it is worth, and one call of it; coefficients are
    too small to change a weight much."""
    direction = Rademacher() if noise == "rademacher" else Gaussian(noise)
    one, two = Term(1e-9, 1), Term(1e-9, 2)
    mask = torch.rand(weight.shape, device=weight.device) < 0.2
    few = torch.rand(weight.shape, device=weight.device) < 0.03
    on = fast.kernels(noise, weight)
    if on is not None and on.READS_PLACES:
        few = Places.of(few)  # as the engine holds a mask that stays
    m, v = (torch.ones(weight.shape, device=weight.device) for _ in range(2))

    def sweep(*terms: Term | Step, under: Any = None) -> Callable[[], None]:
        return lambda: sweep_(weight, 0, terms, direction, under)

    out = {
        "one term": (1.0, sweep(one)),
        "two terms": (1.0, sweep(one, two)),
        "one term, stochastic": (1.0, sweep(Term(1e-9, 1, stochastic=True))),
        "one term, mask": (1.0, sweep(one, under=mask)),
        "one term, 3 % move": (1.0, sweep(one, under=few)),
        "two terms, 3 % move": (1.0, sweep(one, two, under=few)),
        "pair": (1.5, lambda: pair(weight, 0, 1, 1e-9, direction)),
        "pair, 3 % move": (1.5, lambda: pair(weight, 0, 1, 1e-9, direction, few)),
    }
    for name, step in _updates(m, v).items():
        moments = (step.first is not None) + (step.second is not None)
        passes = 1.0 + 4 * moments / weight.element_size()
        out[name] = (passes, sweep(one, step, two))
    return out


def _updates(m: Tensor, v: Tensor) -> dict[str, Step]:
    """The updates by moments that rules ask for, along the direction of the way back."""
    probes, then = ((1e-3, 1),), Term(-1e-9, 1)
    adam, helene = Divisor(root=True, plus=1e-8), Divisor(floor=1.0, plus=1e-8)
    return {
        "momentum": Step((Look(probes, (0.9, 1.0)),), then, m),
        "adam": Step((Look(probes, (0.9, 0.1), (0.999, 1e-3)),), then, m, v, adam),
        "helene": Step((Look(probes, (0.9, 0.95), (0.99, 0.01)),), then, m, v, helene),
    }


def _measure(run: Callable[[], Any], passes: float, weight: Tensor, rounds: int) -> dict[str, Any]:
    """Time in turns with a pass that only reads and writes."""
    shares, times = [], []
    for number in range(rounds + 1):
        floor = common.seconds(lambda: weight.mul_(1.0), weight.device)
        own = common.seconds(run, weight.device)
        if number:
            shares.append(passes * floor / own)
            times.append(own / len(weight) * 1e11)
    share, around = spread(shares)
    return {
        "milliseconds_per_100m": spread(times)[0],
        "fraction_of_bandwidth": share,
        "quartiles": around,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["kernel", "noise", "backend", "dtype"]
    lines = [
        [
            *(row[key] for key in header),
            f"{row['milliseconds_per_100m']:.0f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(row["fraction_of_bandwidth"], *row["quartiles"]),
        ]
        for row in rows
    ]
    return table([*header, "ms per 100M", "of bandwidth"], lines)
