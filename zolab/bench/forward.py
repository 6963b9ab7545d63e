"""What each trick of the forward saves, each against the plain way, in turns.

Ratios above 1 mean that the trick is faster. The plain ways: logits at every position; every batch
as long as the longest example; two forwards instead of one of the doubled batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zolab.bench import common
from zolab.bench.common import DTYPES, SHAPES, random_opt, spread, synthetic_batches, table
from zolab.bench.embedded import embedded
from zolab.objectives import Batch, BatchLoss, CausalScorer

Work = Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    """Measure every trick; print the table and write the file."""
    parser = common.parser("forward", __doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-125m", choices=(*SHAPES, "embedded"))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--rows", type=int, default=16, help="examples in a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an example")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    device = common.settle(args)
    rows = []
    for dtype in args.dtype:
        if args.model == "embedded":
            model, batches = embedded(dtype, device, args.rows)
        else:
            model = random_opt(args.model, dtype, device)
            vocab = model.config.vocab_size
            batches = synthetic_batches(2, args.rows, args.tokens, vocab, device)
        for name, (plain, trick) in _tricks(model, batches, device).items():
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

    out = {"scored positions only": (whole, scored), "both signs in one batch": (twice, doubled)}
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
