"""The command `report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from analysis import DEFAULT_BASELINE, SOURCES
from zolab.errors import UserError


class Parser(argparse.ArgumentParser):
    """Arguments of the verb; mistakes are told in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class Reading:
    """A bar over the logs that are being read, on a terminal only."""

    def __enter__(self) -> Reading:
        self._bar: Any = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Tell that `done` of `total` logs have been read."""
        if self._bar is None and total > 1 and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="reading", unit="log", leave=False)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)


def report(argv: Sequence[str]) -> int:
    """Run `report RUNS --out DIR [--source …] [--baseline NAME] [--target RULE]`.

    Args:
        argv: the words behind the verb.

    Returns:
        0 when the report was written.

    Raises:
        UserError: wrong words, or see `analysis.report.build`.
        SystemExit: by argparse, with status 0 for --help.
    """
    parser = Parser(
        prog="zolab report",
        description="Convergence, speedup, time and memory tables from the logs of finished runs.",
    )
    parser.add_argument(
        "runs", metavar="RUNS", help="folder of run folders; with --source online a wandb project"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="where the report goes"
    )
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default=SOURCES[0],
        help="run folders, the offline .wandb files alone, or a wandb project (default: local)",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help=f"method to compare with, as named in the tables (default: {DEFAULT_BASELINE})",
    )
    parser.add_argument(
        "--target",
        metavar="RULE",
        default="final",
        help="level of the time-to-target tables: final (the baseline's, default), fraction:0.9 "
        "of its way there, or absolute:0.8",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="what to compare, of what was logged on dev: accuracy (default), f1, loss, …",
    )
    parser.add_argument(
        "--publish",
        metavar="PROJECT",
        help="also make a W&B report in this project (needs wandb-workspaces and a login)",
    )
    args = parser.parse_args(argv)
    # Behind the parser, so that --help does not wait for polars and plotly.
    from analysis.report import build
    from analysis.targets import parse_target

    target = parse_target(args.target)
    with Reading() as reading:
        result = build(
            args.runs,
            args.out,
            source=args.source,
            baseline=args.baseline,
            target=target,
            metric=args.metric,
            watch=reading.show,
        )
    print(result.text, end="")
    if args.publish:
        from analysis.publish import publish

        print(f"W&B report: {publish(result.contents, args.publish, 'zolab report')}")
    return 0
