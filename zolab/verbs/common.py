"""What verbs about one run share: their arguments, and where they may write."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from zolab.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """Arguments of a verb; mistakes are told in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run_parser(verb: str, description: str) -> Parser:
    """A parser with the arguments RUN, --out and --run-root."""
    parser = Parser(prog=f"zolab {verb}", description=description)
    parser.add_argument("run", metavar="RUN", help="run directory, or a run id below --run-root")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--run-root", type=Path, default=Path("runs"), help="default: runs")
    return parser


def cell_parser(verb: str, description: str, overrides: str) -> Parser:
    """A parser with the arguments KEY=VALUE (described by `overrides`) and --config-dir."""
    parser = Parser(prog=f"zolab {verb}", description=description)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)
    parser.add_argument("--config-dir", "-cd", type=Path, help="a folder with further YAML files")
    return parser


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The overrides given to a `cell_parser`, with its folder on Hydra's search path.

    Raises:
        UserError: `--config-dir` names no folder.
    """
    folder: Path | None = options.config_dir
    if folder is None:
        return list(options.overrides)
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder}: expected a folder with YAML files")
    place = str(folder.resolve()).replace("'", "\\'")
    return [f"hydra.searchpath=['file://{place}']", *options.overrides]


def step_number(text: str) -> int:
    """A step as argparse wants it."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number >= 0")
    return int(text)


def find_run(name: str, root: Path) -> Path:
    """The run directory that a user means; UserError with the nearest id if there is none."""
    for folder in (Path(name), root / name):
        if (folder / "config.yaml").is_file():
            return folder
    known = [path.parent.name for path in root.glob("*/config.yaml")]
    raise UserError(
        f"RUN = {name!r}: no run directory, nor a run id in {root}{nearest(name, known)}"
    )


def look_over_out(out: Path) -> None:
    """Refuse a folder that cannot be made or is not empty, before a model is built for it."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            what = "a file, expected a folder" if path == out else f"{path} is a file"
            raise UserError(f"--out {out}: {what}")
    above = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {above} cannot be written")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: expected a folder that is empty or does not exist")


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the disk says against `--out`, in one line."""
    try:
        yield
    except OSError as error:
        if not str(error.filename or "").startswith(str(out)):
            raise
        raise UserError(f"--out {out}: cannot write there: {error.strerror}") from error
