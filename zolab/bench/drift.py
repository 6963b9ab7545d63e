"""What walking to theta ± eps z leaves in the weights, and what becomes of small updates.

A matrix of weights N(0, 0.02²) under every placement and dtype. Drift: steps whose losses are
equal, so that no update is asked for; the root mean square of what moved all the same. Updates:
losses are chosen so that each step asks for c z; `slope` is the regression of where the weights
went on where they were sent (1: nothing lost), `noise` the rest over what was asked for.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from zolab import optim
from zolab.bench import common
from zolab.bench.common import DTYPES, table

EPS, SIGMA = 1e-3, 0.02
PLACEMENTS = {
    "in_place official": lambda: optim.InPlace("official"),
    "in_place": optim.InPlace,
    "paired": optim.Paired,
}


def main(argv: list[str] | None = None) -> int:
    """Measure every placement and dtype; print the table and write the file."""
    parser = common.parser("drift", __doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--side", type=int, default=256, help="of the matrix")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 100, 1000])
    parser.add_argument("--updates", type=int, default=200, help="steps of the second part")
    parser.add_argument("--size", nargs="+", type=float, default=[1e-6, 1e-5, 1e-4], metavar="C")
    args = parser.parse_args(argv)
    device = common.settle(args)
    rows = []
    for dtype in args.dtype:
        for placement in PLACEMENTS:
            row: dict[str, Any] = {"placement": placement, "dtype": dtype}
            row["drift"] = _drift(args, dtype, placement, device)
            row["updates"] = {
                f"{size:g}": _updates(args, dtype, placement, size, device) for size in args.size
            }
            rows.append(row)
    common.report("drift", args.json, vars(args), rows, _table(rows))
    return 0


def _drift(args: Any, dtype: str, placement: str, device: torch.device) -> dict[str, float]:
    """Steps without an update -> root mean square of the displacement."""
    model, start = _model(args.side, dtype, device)
    optimizer = _optimizer(model, placement)
    out: dict[str, float] = {}
    for step in range(1, max(args.steps) + 1):
        optimizer.step(lambda copies: [0.0] * copies)
        if step in args.steps:
            optimizer.flush()
            out[str(step)] = _moved(model, start).square().mean().sqrt().item()
    return out


def _updates(
    args: Any, dtype: str, placement: str, size: float, device: torch.device
) -> dict[str, float]:
    """Slope and relative noise of the displacement after updates of `size` times z each."""
    model, start = _model(args.side, dtype, device)
    optimizer = _optimizer(model, placement)
    exact, wanted = _model(args.side, "float64", device)
    ideal = _optimizer(exact, "in_place")
    for walker in (optimizer, ideal):
        for _ in range(args.updates):
            losses = _Losses(size)
            walker.step(losses)
        walker.flush()
    asked, got = _moved(exact, wanted).flatten(), _moved(model, start).flatten()
    slope = float(got @ asked / (asked @ asked))
    rest = (got - slope * asked).norm() / asked.norm()
    return {"slope": round(slope, 4), "noise": round(rest.item(), 4)}


class _Losses:
    """Losses whose projected gradient is -size: with lr = 1 the update is +size z."""

    def __init__(self, size: float) -> None:
        self.queue = [0.0, 2 * EPS * size]

    def __call__(self, copies: int) -> list[float]:
        return [self.queue.pop(0) for _ in range(copies)]


def _model(side: int, dtype: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A linear layer without bias, and its weights in float64."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(side, side, bias=False)
    weight = (SIGMA * torch.randn(side, side, generator=generator)).to(DTYPES_WIDE[dtype])
    model.weight = nn.Parameter(weight.to(device))
    return model, model.weight.detach().double().clone()


def _optimizer(model: nn.Module, placement: str) -> optim.ZeroOrder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 16-bit weights in place are the point here
        return optim.ZeroOrder(
            model.named_parameters(), 1.0, EPS, placement=PLACEMENTS[placement](), model=model
        )


DTYPES_WIDE = {**DTYPES, "float64": torch.float64}


def _moved(model: nn.Module, start: Tensor) -> Tensor:
    return model.weight.detach().double() - start


def _table(rows: list[dict[str, Any]]) -> str:
    steps, sizes = list(rows[0]["drift"]), list(rows[0]["updates"])
    header = ["placement", "dtype", *(f"drift {s}" for s in steps)]
    header += [f"update {c}: slope / noise" for c in sizes]
    lines = []
    for row in rows:
        updates = (row["updates"][c] for c in sizes)
        lines.append(
            [
                row["placement"],
                row["dtype"],
                *(f"{row['drift'][s]:.1e}" for s in steps),
                *(f"{u['slope']:.2f} / {u['noise']:.2g}" for u in updates),
            ]
        )
    return table(header, lines)
