"""`zolab export`: the tuned model or adapter of a run, ready to be loaded elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zolab.errors import UserError
from zolab.verbs.common import find_run, look_over_out, run_parser, step_number, writing

BEST, LAST = "best", "last"


def export(arguments: list[str]) -> int:
    """Write the model or adapter of a run; returns the exit status.

    Without --adapter or --merged: the adapter in peft's format where the tuning mode adds one
    (lora, prefix, prompt), else the whole model.
    """
    parser = run_parser(
        "export", "Write the tuned model of a run, or its adapter, for transformers or peft."
    )
    parser.add_argument(
        "--step",
        type=_step,
        default=BEST,
        help="best (on dev; the one that was tested), last, or updates done; default: best",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--adapter", action="store_true", help="what was added alone")
    form.add_argument("--merged", action="store_true", help="a whole model, adapters merged")
    options = parser.parse_args(arguments)
    folder = find_run(options.run, options.run_root)
    look_over_out(options.out)
    step = _resolve(folder, options.step)
    from zolab import run
    from zolab.compose import read_cell

    loaded = run.rebuild(folder, step)
    tuning = loaded.tuning
    if options.merged and not tuning.merges:
        raise UserError(
            f"--merged: what {tuning.kind} adds is no change of the model's own weights; "
            "export it with --adapter"
        )
    merged = options.merged or (tuning.adapter_format is None and not options.adapter)
    with writing(options.out):
        if merged:
            tuning.save_model(loaded.model, options.out)
        else:
            base = run.base_of(read_cell(folder))
            tuning.save_adapter(loaded.model, options.out, base, loaded.kind)
        loaded.tokenizer.save_pretrained(options.out)
    what = "model" if merged else f"adapter ({tuning.adapter_format} format)"
    print(f"{what} of {folder.name} at step {step} -> {options.out}")
    return 0


def _step(text: str) -> Any:
    try:
        return text if text in (BEST, LAST) else step_number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {BEST}, {LAST} or a whole number >= 0"
        ) from None


def _resolve(folder: Path, step: int | str) -> int:
    """The number of a step; best and last are known once a run is done."""
    if isinstance(step, int):
        return step
    from zolab.ledger import read_json

    result = read_json(folder / "result.json")
    if not result:
        raise UserError(
            f"--step {step}: {folder.name} is not done, so its {step} step is not known yet; "
            "name a step"
        )
    return int(result["best"]["step"] if step == BEST else result["steps"])
