"""What each trick of the forward saves, each against the plain way, in turns.

Ratios above 1 mean that the trick is faster. The plain ways: logits at every position; every batch
as long as the longest example; two forwards instead of one of the doubled batch; a row of its own
for each answer, prompt included (`--answers` of 4 tokens, a prompt of 4 times `--tokens`; whole
steps: four examples of `--choices`); both signs through all layers where only the last one, or the
last third, moves (whole steps; `kept`: of later epochs); torch's own linear layers (all others
multiply by what `--linear` names); on CUDA, a forward recorded as a graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from zolab import optim
from zolab.bench import common
from zolab.bench.common import (
    DTYPES,
    SHAPES,
    random_opt,
    spread,
    synthetic_batches,
    synthetic_examples,
    table,
)
from zolab.bench.embedded import embedded
from zolab.models.tuning.subset import Head
from zolab.objectives import Batch, BatchLoss, CausalScorer
from zolab.objectives.captured import CHECKED, Graphs, capture_of
from zolab.objectives.encode import Candidate, Encoded
from zolab.optim import linear
from zolab.optim.offload.blocks import find_blocks

Work = Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    """Measure every trick; print the table and write the file."""
    parser = common.parser("forward", __doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-125m", choices=(*SHAPES, "embedded"))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    common.take_linear(parser)
    parser.add_argument("--rows", type=int, default=16, help="examples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an example")
    parser.add_argument("--answers", type=int, default=10, help="answers to a shared prompt")
    parser.add_argument("--choices", type=int, default=4, help="the same, of a training step")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    device = common.settle(args)
    rows = []
    for dtype in args.dtype:
        if args.model == "embedded":
            model, batches = embedded(dtype, device, args.rows, args.linear)
        else:
            model = random_opt(args.model, dtype, device, args.linear)
            vocab = model.config.vocab_size
            batches = synthetic_batches(2, args.rows, args.tokens, vocab, device)
        tricks = _tricks(model, batches, device) | _upper(model, batches[0])
        if args.model != "embedded":
            examples = synthetic_examples(1, args.rows, args.tokens, model.config.vocab_size)[0]
            tricks |= _answers(model, args) | _trained_answers(model, args) | _kept(model, examples)
        for name, (plain, trick) in tricks.items():
            ratios = []
            for number in range(args.rounds + 1):
                one, other = common.seconds(plain, device), common.seconds(trick, device)
                if number:
                    ratios.append(one / other)
            ratio, around = spread(ratios)
            row = {"trick": name, "model": args.model, "dtype": dtype}
            rows.append(row | {"plain_over_trick": ratio, "quartiles": around})
    common.report("forward", args.json, vars(args), rows, _table(rows))
    return 0


def _tricks(
    model: nn.Module, batches: list[Batch], device: torch.device
) -> dict[str, tuple[Work, Work]]:
    """Trick -> the plain way and the trick."""
    scorer = CausalScorer(model, pad_id=1)
    batch = batches[0]
    longest = max(b.input_ids.shape[1] for b in batches)

    def scored() -> None:
        BatchLoss(scorer, [batch])(1)

    def whole() -> None:
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
            logits.flatten(0, 1)[batch.select].float().log_softmax(-1)

    def twice() -> None:
        loss = BatchLoss(scorer, [batch])
        loss(1), loss(1)

    def doubled() -> None:
        BatchLoss(scorer, [batch])(2)

    def by_torch() -> None:
        linear.use_torch(model)
        scored()
        linear.use_onednn(model)

    out = {"scored positions only": (whole, scored), "both signs in one batch": (twice, doubled)}
    if linear.use_torch(model):
        linear.use_onednn(model)
        out["linear layers by oneDNN"] = (by_torch, scored)
    capture = capture_of(device)
    if capture is not None:
        graphs = Graphs(capture, list(model.parameters()))
        recorded = BatchLoss(scorer, [batch], graphs=graphs)
        for _ in range(2 + CHECKED):
            recorded(1)
        if graphs.stopped is None:
            out["a forward as a CUDA graph"] = (scored, partial(recorded, 1))
    if len({b.input_ids.shape[1] for b in batches}) > 1:

        def stretched() -> None:
            with torch.inference_mode():
                for each in batches:
                    rows, tokens = each.input_ids.shape
                    pad = each.input_ids.new_full((rows, longest - tokens), 1)
                    select = each.select // tokens * longest + each.select % tokens
                    ids = torch.cat((each.input_ids, pad), 1)
                    scorer.logits(select, input_ids=ids, use_cache=False)

        def bucketed() -> None:
            for each in batches:
                BatchLoss(scorer, [each])(1)

        out["batches of like length"] = (stretched, bucketed)
    return out


def _questions(model: nn.Module, args: Any, count: int, answers: int) -> list[Encoded]:
    """Examples with answers of four tokens behind one prompt."""
    prompt, answer = min(4 * args.tokens, model.config.max_position_embeddings - 8), 4
    generator = torch.Generator().manual_seed(2)

    def tokens(count: int) -> tuple[int, ...]:
        drawn = torch.randint(10, model.config.vocab_size, (count,), generator=generator)
        return tuple(drawn.tolist())

    def example() -> Encoded:
        asked, said = tokens(prompt), [tokens(answer) for _ in range(answers)]
        places = tuple(range(prompt - 1, prompt + answer - 1))
        candidates = tuple(Candidate(i, places, one) for i, one in enumerate(said))
        return Encoded(tuple(asked + one[:-1] for one in said), candidates, 0, False)

    return [example() for _ in range(count)]


def _answers(model: nn.Module, args: Any) -> dict[str, tuple[Work, Work]]:
    """Two examples scored over their answers."""
    scorer = CausalScorer(model, pad_id=1)
    examples = _questions(model, args, 2, args.answers)
    apart, shared = (scorer.batch(examples, share=share) for share in (False, True))
    score = torch.inference_mode()(scorer.scores)
    works = (partial(score, apart), partial(score, shared))
    return {"a prompt once for its answers": works}


def _trained_answers(model: nn.Module, args: Any) -> dict[str, tuple[Work, Work]]:
    """Steps on four examples, where sharing their prompts is worth it."""
    scorer = CausalScorer(model, pad_id=1)
    examples = _questions(model, args, 4, args.choices)
    apart, shared = (scorer.batch(examples, trains=trains) for trains in (False, True))
    out = {}
    for placement in (optim.InPlace, optim.Paired) if shared.groups else ():
        both = (
            partial(_step(model, model.named_parameters(), placement()), BatchLoss(scorer, [batch]))
            for batch in (apart, shared)
        )
        out[f"a prompt once for its answers: a step {placement.name}"] = tuple(both)
    return out


def _step(model: nn.Module, moving: Any, placement: optim.Placement) -> Work:
    return optim.ZeroOrder(moving, 1e-6, 1e-3, placement=placement, model=model).step


def _upper_parts(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """What moves where layers below stand still."""
    blocks = [block.name for block in find_blocks(model)]
    third = blocks[-(len(blocks) // 3 or 1) :]
    return {
        what: [
            (name, p)
            for name, p in model.named_parameters()
            if any(name.startswith(block + ".") for block in names)
        ]
        for what, names in {
            "the last layer": blocks[-1:],
            "the last third of the layers": third,
        }.items()
    }


def _upper(model: nn.Module, batch: Batch) -> dict[str, tuple[Work, Work]]:
    """Steps in which nothing moves below some layer, by `paired` with and without what it knows."""
    out = {}
    for what, moving in _upper_parts(model).items():
        both = []
        for usable in (False, True):
            placement = optim.Paired()
            step = _step(model, moving, placement)
            placement.lower.usable = usable
            loss = BatchLoss(CausalScorer(model, pad_id=1), [batch])
            both.append(partial(step, loss))
        out[f"layers below once: {what} moves"] = (both[0], both[1])
    return out


def _kept(model: nn.Module, examples: list[Encoded]) -> dict[str, tuple[Work, Work]]:
    """The same steps when the examples come again; and those of head tuning."""
    tuned = copy.deepcopy(model)
    Head().apply(tuned, 0)
    head = [(name, p) for name, p in tuned.named_parameters() if p.requires_grad]
    cases = [(model, what, moving) for what, moving in _upper_parts(model).items()]
    out = {}
    for where, what, moving in [*cases, (tuned, "the output layer", head)]:
        both = []
        for keep in (False, True):
            placement = optim.Paired()
            step = _step(where, moving, placement)
            placement.lower.usable = False
            scorer = CausalScorer(where, pad_id=1)
            if keep:
                scorer.keep([p for _, p in moving], [examples], math.inf)
            both.append(partial(step, BatchLoss(scorer, [scorer.batch(examples)])))
        out[f"layers below kept: {what} moves"] = (both[0], both[1])
    return out


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["trick"],
            row["model"],
            row["dtype"],
            "{:.2f} [{:.2f}, {:.2f}]".format(row["plain_over_trick"], *row["quartiles"]),
        ]
        for row in rows
    ]
    return table(["trick", "model", "dtype", "plain / trick"], lines)
