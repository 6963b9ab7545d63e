"""Time of a zeroth-order step as a fraction of the fastest possible one: two bare forwards.

Everything alternates in one process: in each round every scheme takes its turn right after the two
forwards it is compared with (same model shape, same batches, scored-position logits, no
perturbation), and only ratios of neighbours are reported, as median and quartiles over the rounds.
`official` is the published step restated (`bench.official`), with logits and log-softmax at every
position and torch's own linear layers; all others, the bare forwards too, multiply by what
`--linear` names. Each in-place scheme has a model of its own, since its weights stay perturbed
between steps; those that never touch them share one. Where both signs pass the base in one batch
(LoRA, low rank), a bare forward of the doubled batch is the second yardstick.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from zolab import optim
from zolab.bench import common
from zolab.bench.common import DTYPES, SHAPES, random_opt, spread, synthetic_batches, table
from zolab.bench.embedded import embedded
from zolab.bench.official import OfficialStep, answer_loss
from zolab.errors import UserError
from zolab.models.tuning import Lora
from zolab.objectives import Batch, BatchLoss, CausalScorer
from zolab.optim.late import Unread
from zolab.optim.linear import use_torch

LR, EPS = 1e-6, 1e-3
PLACEMENTS = {"in_place": optim.InPlace, "paired": optim.Paired, "per_layer": optim.PerLayer}
NOISES = ("gauss", "gauss8", "rademacher")


@dataclass(frozen=True)
class Scheme:
    """One way of taking a step; `sparsity` is the share frozen, `rank` that of a low-rank z."""

    scheme: str
    placement: str
    backend: str
    noise: str
    tuning: str = "full"
    direction: str = "gaussian"
    sparsity: float = 0.0
    rank: int | None = None

    @property
    def both_at_once(self) -> bool:
        """Whether a doubled forward of the base is what a step could cost."""
        return self.tuning != "full" or self.direction in ("lazy_low_rank", "subspace")


#: scheme -> (what it changes in `Scheme`, its parts).
KINDS: dict[str, tuple[dict[str, Any], dict[str, Callable[[], Any]]]] = {
    "mezo": ({}, {}),
    "sparse_mezo": ({"sparsity": 0.8}, {"mask": lambda: optim.SmallWeights(0.8)}),
    "r_mezo": ({"sparsity": 0.97}, {"mask": lambda: optim.RandomMask(0.97)}),
    "lora": ({"tuning": "lora"}, {}),
    "lozo": ({"direction": "lazy_low_rank"}, {"direction": optim.LazyLowRank}),
    "subzero": ({"direction": "subspace"}, {"direction": optim.Subspace}),
    "momentum": ({}, {"rule": optim.Momentum}),
    "adam": ({}, {"rule": optim.Adam}),
    "helene": ({}, {"rule": optim.Helene}),
}
#: Measured when none are named; those with state hold several times the weights.
USUAL = [name for name, (_, parts) in KINDS.items() if "rule" not in parts]


class Turn:
    """Steps of one scheme on a list of batches, timed as a whole."""

    def __init__(
        self, work: Callable[[BatchLoss], Any], model: nn.Module, backend: str = "cpp"
    ) -> None:
        self.work = work
        self.backend = backend
        self.scorer = CausalScorer(model, pad_id=1)

    def seconds(self, batches: Sequence[Batch]) -> float:
        def all_of_them() -> None:
            for batch in batches:
                self.work(BatchLoss(self.scorer, [batch]))

        with common.backend(self.backend):
            return common.seconds(all_of_them, self.scorer.device)


def main(argv: list[str] | None = None) -> int:
    """Measure every dtype until rounds or seconds are used up; print the table, write the file."""
    args = _parse(argv)
    device = common.settle(args)
    common.chosen_backends(args.backend, device)
    rows, lines, loads = [], {}, []
    for dtype in args.dtype:
        lines[dtype] = common.roofline(device, dtype, 16 if args.model == "tiny" else 256)
        model, batches = _load(args, dtype, device)
        found, load = _measure(args, dtype, model, batches)
        rows += found
        loads += load
        del model, batches
    settings = {**vars(args), "load_of_rounds": loads}
    common.report("step", args.json, settings, rows, _table(rows), roofline=lines)
    return 0


def _measure(
    args: argparse.Namespace, dtype: str, model: nn.Module, batches: Sequence[Batch]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows of one dtype, and the load of each round."""
    limit = Turn(lambda loss: (loss(1), loss(1)), model)
    doubled = Turn(lambda loss: loss(2), model)
    official = Turn(_Official(model), model, "torch")
    turns = {scheme: _turn(scheme, model, args.lag) for scheme in _schemes(args, model)}
    times: dict[Any, list[tuple[float, ...]]] = {name: [] for name in [*turns, "official"]}
    loads = []
    begin = time.perf_counter()
    for number in range(args.rounds + 1):
        spent = time.perf_counter() - begin
        if number > 2 and spent * (number + 1) / number > args.seconds:
            break
        part = [batches[(number * args.steps + i) % len(batches)] for i in range(args.steps)]
        # The forwards after the published step, which leaves nothing of theirs in the caches, take
        # longer: those are another scheme's in each round.
        order: list[tuple[Scheme | str, Turn]] = list(turns.items())
        order.insert(number % len(order), ("official", official))
        for name, turn in order:
            own = (limit.seconds(part), turn.seconds(part))
            if isinstance(name, Scheme) and name.both_at_once:
                own = (*own, doubled.seconds(part))
            if number:  # the first round builds, allocates and warms up
                times[name].append(own)
            if sys.stderr.isatty():
                print(f"\r{dtype} round {number} {name}\033[K", end="", file=sys.stderr)
        loads.append(round(os.getloadavg()[0], 2))
    base = [(own[0] / own[1]) for own in times["official"]]
    last = Scheme("official", "in_place", "torch", "gauss")
    rows = []
    for name in turns:
        # Other schemes under the same noise, placement and backend are told beside plain MeZO.
        plain = times.get(replace(name, scheme="mezo", sparsity=0.0), [])
        beside = [] if name.scheme == "mezo" else plain
        rows.append(_row(args, dtype, name, times[name], base, beside))
    rows.append(_row(args, dtype, last, times["official"], base))
    return rows, loads


# --- what takes a turn ---------------------------------------------------------------------------


def _schemes(args: argparse.Namespace, model: nn.Module) -> list[Scheme]:
    """All noises and backends with plain MeZO; one of each with what builds on it, but all
    backends again where a rule has state."""
    chosen = common.chosen_backends(args.backend, next(model.parameters()).device)
    out = []
    for name in args.scheme:
        change, parts = KINDS[name]
        plain = name == "mezo"
        # A rank or an adapter is nothing without both signs in one batch.
        full = "sparsity" in change or "rule" in parts
        for placement in args.placement if plain or full else ["paired"]:
            for backend in chosen if plain or "rule" in parts else chosen[:1]:
                noises = args.noise
                if not plain:
                    noises = ["gauss8" if full and "gauss8" in noises else "gauss"]
                for noise in noises:
                    drawn = {"direction": "rademacher" if noise == "rademacher" else "gaussian"}
                    scheme = Scheme(name, placement, backend, noise, **{**drawn, **change})
                    ranks = _ranks(args, parts)
                    out += [replace(scheme, rank=rank) for rank in ranks]
    return out


def _ranks(args: argparse.Namespace, parts: dict[str, Callable[[], Any]]) -> list[int | None]:
    """Ranks that a scheme is measured at: its own, or those asked for if it has one."""
    direction = parts.get("direction")
    if direction is None:
        return [None]
    return args.rank or [direction().rank]


def _turn(scheme: Scheme, model: nn.Module, lag: int) -> Turn:
    if scheme.placement == "in_place" or scheme.tuning == "lora":
        model = copy.deepcopy(model)
        for module in model.modules():  # a copied model also copies the hook of its scorer
            module._forward_pre_hooks.clear()
    if scheme.tuning == "lora":
        Lora().apply(model, model.config.vocab_size)
    noise = scheme.noise
    makers = KINDS[scheme.scheme][1]
    if scheme.rank is not None:
        makers = {**makers, "direction": partial(makers["direction"], rank=scheme.rank)}
    parts = {name: make() for name, make in makers.items()}
    parts.setdefault(
        "direction", optim.Rademacher() if noise == "rademacher" else optim.Gaussian(noise)
    )
    with common.backend(scheme.backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 16-bit weights in place: measured all the same
        optimizer = optim.ZeroOrder(
            [(name, p) for name, p in model.named_parameters() if p.requires_grad],
            lr=LR,
            eps=EPS,
            placement=PLACEMENTS[scheme.placement](),
            model=model,
            **parts,
        )
    late = lag and optimizer.waits_for is None
    return Turn(_Lagging(optimizer, lag) if late else optimizer.step, model, scheme.backend)


class _Lagging:
    """Steps whose losses are read so many steps later."""

    def __init__(self, optimizer: optim.ZeroOrder, lag: int) -> None:
        self.optimizer = optimizer
        self.lag = lag
        self.under_way: deque[Unread] = deque()

    def __call__(self, loss: BatchLoss) -> None:
        loss.late = True
        self.optimizer.step(loss)
        self.under_way.append(self.optimizer.taken)
        while len(self.under_way) > self.lag:
            self.under_way.popleft().read()


class _Official:
    """The published step on a batch, logits and log-softmax at all positions included."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        use_torch(self.model)
        for module in self.model.modules():
            module._forward_pre_hooks.clear()
        self.step = OfficialStep(self.model.parameters(), LR, EPS)
        self.seed = 0

    def __call__(self, loss: BatchLoss) -> None:
        self.seed += 1
        (batch,) = loss.batches
        self.step(lambda: self._loss(batch), self.seed)

    @torch.inference_mode()
    def _loss(self, batch: Batch) -> float:
        logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
        return float(answer_loss(logits, batch.input_ids, batch.attention_mask))


def _load(
    args: argparse.Namespace, dtype: str, device: torch.device
) -> tuple[nn.Module, list[Batch]]:
    """The model, in eval mode, and its batches: random ones, or those of the embedded task."""
    if args.model == "embedded":
        return embedded(dtype, device, args.rows, args.linear)
    model = random_opt(args.model, dtype, device, args.linear)
    vocab = model.config.vocab_size
    return model, synthetic_batches(2 * args.steps, args.rows, args.tokens, vocab, device)


# --- results -------------------------------------------------------------------------------------


def _row(
    args: argparse.Namespace,
    dtype: str,
    scheme: Scheme,
    times: Sequence[tuple[float, ...]],
    official: Sequence[float],
    mezo: Sequence[tuple[float, ...]] = (),
) -> dict[str, Any]:
    """A row: ratios go through the neighbouring limit, so that load cancels; those to MeZO's steps
    are of the same round."""
    fractions = [own[0] / own[1] for own in times]
    ratios = [mine / theirs for mine, theirs in zip(fractions, official, strict=True)]
    fraction, around = spread(fractions)
    ratio, about = spread(ratios)
    row = {
        **asdict(scheme),
        "model": args.model,
        "lag": args.lag,
        "dtype": dtype,
        "linear": "torch" if scheme.scheme == "official" else common.linear_name(args, dtype),
        "fraction_of_limit": fraction,
        "fraction_quartiles": around,
        "official_ratio": ratio,
        "official_quartiles": about,
        "rounds": len(times),
    }
    if scheme.both_at_once:
        share, near = spread([own[2] / own[1] for own in times])
        row |= {"fraction_of_doubled": share, "doubled_quartiles": near}
    if mezo:
        pairs = zip(mezo, times, strict=True)
        times_as_fast, near = spread([theirs[1] / own[1] for theirs, own in pairs])
        row |= {"mezo_ratio": times_as_fast, "mezo_quartiles": near}
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["scheme", "rank", "placement", "noise", "sparsity", "backend", "linear", "dtype"]
    measured = {
        "of limit": ("fraction_of_limit", "fraction_quartiles"),
        "official/this": ("official_ratio", "official_quartiles"),
        "of one doubled forward": ("fraction_of_doubled", "doubled_quartiles"),
        "MeZO/this": ("mezo_ratio", "mezo_quartiles"),
    }
    lines = []
    for row in rows:
        cells = ["-" if row[key] is None else str(row[key]) for key in header]
        for value, quartiles in measured.values():
            digits = 3 if value == "mezo_ratio" else 2  # the last is what a mask may save
            numbers = [f"{x:.{digits}f}" for x in (row.get(value, 0), *row.get(quartiles, (0, 0)))]
            cells.append("{} [{}, {}]".format(*numbers) if value in row else "-")
        lines.append(cells)
    return table([*header, *measured], lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser("step", __doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-125m", choices=(*SHAPES, "embedded"))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--backend", choices=common.BACKENDS, help="default: all there are")
    common.take_linear(parser)
    parser.add_argument("--scheme", nargs="+", default=USUAL, choices=KINDS)
    parser.add_argument(
        "--placement", nargs="+", default=["in_place", "paired"], choices=PLACEMENTS
    )
    parser.add_argument("--rank", nargs="+", type=int, help="of lozo and subzero")
    parser.add_argument("--noise", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--rows", type=int, default=16, help="examples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an example")
    parser.add_argument("--steps", type=int, help="steps in a turn (8 for the embedded model)")
    parser.add_argument("--lag", type=int, default=0, help="steps until losses are read")
    parser.add_argument("--rounds", type=int, default=9, help="at most so many")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each dtype, at most")
    args = parser.parse_args(argv)
    if min(args.rank or [1]) < 1:
        raise UserError(f"--rank {min(args.rank)}: expected at least 1")
    args.steps = args.steps or (8 if args.model == "embedded" else 1)
    return args
