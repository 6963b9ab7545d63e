"""Time of a zeroth-order step as a fraction of the fastest possible one: two bare forwards.

Everything alternates in one process: in each round every scheme takes its turn right after the two
forwards it is compared with (same model shape, same batches, scored-position logits, no
perturbation), and only ratios of neighbours are reported, as median and quartiles over the rounds.
`official` is the published step restated: four sweeps that each draw z as a whole tensor with
torch.normal, and logits at every position. Each in-place scheme has a model of its own, since its
weights stay perturbed between steps; those that never touch them share one.

    python benchmarks/step_time.py --model opt-125m --native 1
    python benchmarks/step_time.py --model opt-125m --native 0
    python benchmarks/step_time.py --model embedded
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

# Spinning workers of other processes on the same cores would be measured instead of our step.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import DTYPES, RESULTS, SHAPES, random_opt, synthetic_batches, table, write_json
from torch import nn
from torch.nn import functional as F

from zolab import assets
from zolab.data import BatchOrder
from zolab.models.load import load_model
from zolab.objectives import Batch, BatchLoss, CausalScorer, Encoder, Scorer, collate
from zolab.optim import (
    Dense,
    Gaussian,
    InPlace,
    Paired,
    Rademacher,
    SmallWeights,
    ZeroOrder,
    native,
)
from zolab.tasks import KINDS

LR, EPS, SPARSITY = 1e-6, 1e-3, 0.75
PLACEMENTS = {"in_place": InPlace, "paired": Paired}


@dataclass(frozen=True)
class Scheme:
    """One way of taking a step."""

    scheme: str
    placement: str
    noise: str
    native: int
    sparsity: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.scheme} {self.placement} {self.noise} native={self.native}"


class Turn:
    """Steps of one scheme on a list of batches, timed as a whole."""

    def __init__(self, work: Callable[[BatchLoss], Any], scorer: Scorer, native: int) -> None:
        self.work = work
        self.scorer = scorer
        self.native = str(native)

    def seconds(self, batches: Sequence[Batch]) -> float:
        os.environ["ZOLAB_NATIVE"] = self.native
        begin = time.perf_counter()
        for batch in batches:
            self.work(BatchLoss(self.scorer, [batch]))
        if self.scorer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin


def main(argv: list[str] | None = None) -> int:
    """Measure until the rounds or the seconds are used up; print the table and write the file."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    model, batches = _load(args)
    schemes = [
        Scheme(name, placement, noise, on, SPARSITY if name == "sparse_mezo" else 0.0)
        for on in args.native
        for name in args.scheme
        for placement in args.placement
        for noise in args.noise
        if name == "mezo" or noise == args.noise[0]
    ]
    scorer = CausalScorer(model, pad_id=1)
    limit = Turn(lambda loss: (loss(1), loss(1)), scorer, 1)
    official = Turn(OfficialStep(model), scorer, 1)
    turns = {scheme: _turn(scheme, model, scorer) for scheme in schemes}
    times = _rounds(args, batches, limit, official, turns)
    rows = [_row(args, scheme, times[scheme], times["official"]) for scheme in schemes]
    rows.append(_official_row(args, times["official"]))
    print(_table(rows))
    settings = {k: v for k, v in vars(args).items() if k != "json"} | {"model_numel": _numel(model)}
    settings["rounds_done"] = len(times["official"])
    settings["load_average"] = [round(x, 2) for x in times["load"]]
    out = args.json or RESULTS / f"step_time-{args.model}.json"
    write_json(out, "step_time", settings, {"rows": rows})
    return 0


def _rounds(
    args: argparse.Namespace,
    batches: Sequence[Batch],
    limit: Turn,
    official: Turn,
    turns: dict[Scheme, Turn],
) -> dict[Any, list]:
    """Per scheme, one (seconds of the limit just before, seconds) a round; and the load seen."""
    everything = {**turns, "official": official}
    times: dict[Any, list] = {name: [] for name in everything}
    times["load"] = []
    begin = time.perf_counter()
    for number in range(args.rounds + 1):
        spent = time.perf_counter() - begin
        if number > 3 and spent * (number + 1) / number > args.seconds:
            break
        part = [batches[(number * args.steps + i) % len(batches)] for i in range(args.steps)]
        for name, turn in everything.items():
            pair = (limit.seconds(part), turn.seconds(part))
            if number:  # the first round builds, allocates and warms up
                times[name].append(pair)
            if sys.stderr.isatty():
                print(f"\rround {number} {name}\033[K", end="", file=sys.stderr)
        times["load"].append(os.getloadavg()[0])
    return times


# --- what takes a turn ---------------------------------------------------------------------------


def _turn(scheme: Scheme, model: nn.Module, scorer: Scorer) -> Turn:
    if scheme.placement == "in_place":
        model = copy.deepcopy(model)
        _drop_hooks(model)
        scorer = CausalScorer(model, pad_id=1)
    direction = Rademacher() if scheme.noise == "rademacher" else Gaussian(scheme.noise)
    optimizer = ZeroOrder(
        model.named_parameters(),
        lr=LR,
        eps=EPS,
        direction=direction,
        mask=SmallWeights(SPARSITY) if scheme.sparsity else Dense(),
        placement=PLACEMENTS[scheme.placement](),
        model=model,
    )
    return Turn(optimizer.step, scorer, scheme.native)


class OfficialStep:
    """MeZO's published program (arXiv 2305.17333, Algorithm 1) restated, for speed only.

    Four walks over the weights, each drawing every z again as a whole tensor from a reseeded global
    generator; the update is made of a fresh z as well. The logits of all positions are computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = 0

    @torch.no_grad()
    def __call__(self, loss: BatchLoss) -> None:
        self.step += 1
        (batch,) = loss.batches
        self._walk(EPS)
        plus = self._loss(batch)
        self._walk(-2 * EPS)
        minus = self._loss(batch)
        self._walk(EPS)
        self._walk(-LR * (plus - minus) / (2 * EPS))

    def _walk(self, scale: float) -> None:
        torch.manual_seed(self.step)
        for param in self.model.parameters():
            z = torch.normal(0.0, 1.0, param.shape, device=param.device, dtype=param.dtype)
            param.data = param.data + scale * z

    @torch.inference_mode()
    def _loss(self, batch: Batch) -> float:
        logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
        scored = logits.flatten(0, 1)[batch.select].float()
        target = batch.target.new_zeros(len(scored))
        return float(F.cross_entropy(scored, target))


def _drop_hooks(model: nn.Module) -> None:
    """A copied model also copies the hook of the scorer it came from."""
    model.get_output_embeddings()._forward_pre_hooks.clear()


def _numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _load(args: argparse.Namespace) -> tuple[nn.Module, list[Batch]]:
    """The model, in eval mode, and its batches: random ones, or those of the embedded task."""
    device = torch.device(args.device)
    if args.model != "embedded":
        model = random_opt(args.model, args.dtype, device)
        vocab = model.config.vocab_size
        return model, synthetic_batches(2 * args.steps, args.rows, args.tokens, vocab, device)
    config = {
        "path": "opt-prompt-2m",
        "init": "pretrained",
        "dtype": args.dtype,
        "revision": None,
        "config": {},
        "device": args.device,
    }
    loaded = load_model(config, seed=0)
    task = KINDS["classification"](
        name="uci_sent",
        path="uci_sent",
        template="{sentence} It was",
        label_words=[" terrible", " great"],
        label_column="label",
    )
    rows = task.load(assets.task_dir("uci_sent"))["train"]
    encoded = Encoder(loaded.tokenizer, loaded.max_length)(rows)
    order = BatchOrder([e.length for e in encoded], args.rows, seed=0)
    chosen = [order.batch(step) for step in range(1, order.per_epoch + 1)]
    pad = loaded.tokenizer.pad_token_id or 0
    return loaded.model, [collate([encoded[i] for i in b], pad, device) for b in chosen]


# --- results -------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> dict[str, float]:
    at_least_two = values if len(values) > 1 else [*values, *values]
    low, _, high = quantiles(at_least_two, n=4, method="inclusive")
    return {"median": round(median(values), 4), "q1": round(low, 4), "q3": round(high, 4)}


def _row(
    args: argparse.Namespace,
    scheme: Scheme,
    times: Sequence[tuple[float, float]],
    official: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """A row: both ratios go through the neighbouring limit, so that load cancels."""
    fractions = [limit / own for limit, own in times]
    shares = [limit / own for limit, own in official]
    ratios = [mine / theirs for mine, theirs in zip(fractions, shares, strict=True)]
    fraction, ratio = _spread(fractions), _spread(ratios)
    os.environ["ZOLAB_NATIVE"] = str(scheme.native)
    return {
        **asdict(scheme),
        "model": args.model,
        "backend": "cpp" if native.available() and args.device == "cpu" else "torch",
        "tuning": "full",
        "direction": "rademacher" if scheme.noise == "rademacher" else "gaussian",
        "dtype": args.dtype,
        "fraction_of_limit": fraction["median"],
        "fraction_quartiles": [fraction["q1"], fraction["q3"]],
        "official_ratio": ratio["median"],
        "official_quartiles": [ratio["q1"], ratio["q3"]],
        "rounds": len(times),
    }


def _official_row(args: argparse.Namespace, times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    fraction = _spread([limit / own for limit, own in times])
    return {
        "scheme": "official",
        "placement": "in_place",
        "noise": "torch.normal",
        "native": 0,
        "sparsity": 0.0,
        "model": args.model,
        "backend": "torch",
        "tuning": "full",
        "direction": "gaussian",
        "dtype": args.dtype,
        "fraction_of_limit": fraction["median"],
        "fraction_quartiles": [fraction["q1"], fraction["q3"]],
        "official_ratio": 1.0,
        "official_quartiles": [1.0, 1.0],
        "rounds": len(times),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["scheme", "placement", "noise", "sparsity", "backend", "dtype"]
    header += ["of limit", "quartiles", "official/this", "quartiles"]
    lines = []
    for row in rows:
        low, high = row["fraction_quartiles"]
        slow, fast = row["official_quartiles"]
        lines.append(
            [
                *(str(row[k]) for k in header[:6]),
                f"{row['fraction_of_limit']:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{row['official_ratio']:.2f}",
                f"{slow:.2f}-{fast:.2f}",
            ]
        )
    return table(header, lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="opt-125m", choices=(*SHAPES, "embedded"))
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--native", nargs="+", type=int, default=[1, 0], choices=(0, 1))
    parser.add_argument(
        "--scheme", nargs="+", default=["mezo", "sparse_mezo"], choices=("mezo", "sparse_mezo")
    )
    parser.add_argument("--placement", nargs="+", default=list(PLACEMENTS), choices=PLACEMENTS)
    parser.add_argument(
        "--noise",
        nargs="+",
        default=["gauss", "gauss8", "rademacher"],
        choices=("gauss", "gauss8", "rademacher"),
    )
    parser.add_argument("--rows", type=int, default=16, help="examples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an example")
    parser.add_argument("--steps", type=int, help="steps in a turn (8 for the embedded model)")
    parser.add_argument("--rounds", type=int, default=15, help="at most so many")
    parser.add_argument("--seconds", type=float, default=270.0, help="stop rounds after these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args(argv)
    args.steps = args.steps or (8 if args.model == "embedded" else 1)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
