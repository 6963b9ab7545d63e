"""The command `report`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from analysis import DEFAULT_BASELINE, SOURCES
from zolab.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Arguments of the verb; mistakes are told in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def report(argv: Sequence[str]) -> int:
    """Run `report RUNS --out DIR [--source local|wandb|online] [--baseline NAME]`.

    Args:
        argv: the words behind the verb.

    Returns:
        0 when the report was written.

    Raises:
        UserError: wrong words, or see `analysis.report.build`.
        SystemExit: by argparse, with status 0 for --help.
    """
    parser = _Parser(
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
    args = parser.parse_args(argv)
    # Behind the parser, so that --help does not wait for polars and plotly.
    from analysis.report import build

    print(build(args.runs, args.out, source=args.source, baseline=args.baseline).text, end="")
    return 0
