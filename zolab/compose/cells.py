"""The config.yaml of a run directory: written, brought up to date, read back."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from zolab.compose.building import trust
from zolab.config import check_tree
from zolab.config.contents import save_hashes
from zolab.config.identity import identity, run_id
from zolab.errors import UserError, first_line
from zolab.ledger import find_holder

#: libyaml where it is there: ten times as fast, and a sweep writes a thousand of these files.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: The first line of a config.yaml: what a list of cells shows without reading the rest.
_TITLE = "# "


def title(cell: Mapping[str, Any]) -> str:
    """What a cell is, in a few words for people."""
    mask = cell["sparsity"].get("name", "none")
    parts = [cell["optimizer"].get("name", cell["optimizer"]["_target_"])]
    tuning = cell["model"].get("tuning", {}).get("kind", "full")
    if tuning != "full":
        parts[0] += f" ({tuning})"
    if mask != "none":
        parts.append(f"{mask} {cell['sparsity'].get('sparsity', '')}".strip())
    what = f"{cell['model']['name']} on {cell['task']['name']}"
    return f"{' + '.join(parts)}, {what}, seed {cell['seed']}"


def title_of(folder: str | Path) -> str:
    """The title of the cell in a run directory."""
    file = Path(folder) / "config.yaml"
    try:
        with file.open() as lines:
            first = lines.readline()
        if first.startswith(_TITLE):
            return first.removeprefix(_TITLE).strip()
        return title(yaml.load(file.read_text(), Loader=_LOADER))
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, OSError, ValueError):
        return "(unreadable config.yaml)"


def write_cell(cell: Mapping[str, Any]) -> Path:
    """Make the run directory of a checked cell and write its config.yaml; returns the folder.

    A cell that is finished or running keeps the config it runs with. That of any other one is
    replaced, since all that can differ is where its files lie and how it is run and watched: a
    command that goes on means what it says about those, and finds data that has moved.

    Raises:
        UserError: run_root is a file or cannot be written, or another cell has the same id.
    """
    name = run_id(cell)
    root = Path(cell["run_root"])
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists() and _write_once(folder / "config.yaml", cell):
            return folder
        stored = read_cell(folder)
        same = identity(stored) == identity(cell)
        if same and stored != dict(cell) and _is_idle(folder):
            _replace(folder / "config.yaml", cell)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run_root = {str(root)!r}: {_not_a_folder(folder)} is a file") from None
    except OSError as error:
        raise UserError(f"run_root = {str(root)!r}: cannot write there: {error.strerror}") from None
    if not os.access(folder, os.W_OK) and not (folder / "result.json").exists():
        raise UserError(f"run_root = {str(root)!r}: {folder} cannot be written")
    if not same:
        raise UserError(
            f"{folder / 'config.yaml'} holds another cell with the same run id; "
            "move that run directory away or choose another run_root"
        )
    save_hashes(root)
    return folder


def _is_idle(folder: Path) -> bool:
    """Whether a cell is neither finished nor held by a live process."""
    holder = find_holder(folder)
    return not (folder / "result.json").exists() and (holder is None or holder.stale)


def _write_once(target: Path, cell: Mapping[str, Any]) -> bool:
    """Put a complete file in place or leave an existing one alone (link fails if it exists)."""
    with _complete(target, cell) as temp, contextlib.suppress(FileExistsError):
        os.link(temp, target)
        return True
    return False


def _replace(target: Path, cell: Mapping[str, Any]) -> None:
    """Put a complete file in the place of another; a reader sees one or the other."""
    with _complete(target, cell) as temp:
        os.replace(temp, target)


@contextlib.contextmanager
def _complete(target: Path, cell: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary file beside `target` that holds the whole cell, on disk."""
    temp = target.with_name(f".{target.name}-{uuid.uuid4().hex}.tmp")
    try:
        with temp.open("x") as file:
            file.write(_TITLE + title(cell) + "\n")
            yaml.dump(dict(cell), file, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        yield temp
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def _not_a_folder(folder: Path) -> Path:
    """The first ancestor that exists and is no folder (or the folder itself)."""
    chain = [*reversed(folder.parents), folder]
    return next((path for path in chain if path.exists() and not path.is_dir()), folder)


def read_cell(folder: str | Path) -> dict[str, Any]:
    """The checked config stored in a run directory; also trusts the targets it lists for `build`.

    Raises:
        UserError: there is no config.yaml, or it is not a valid cell of this version.
    """
    file = Path(folder) / "config.yaml"
    try:
        tree = yaml.load(file.read_text(), Loader=_LOADER)
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML ({first_line(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    try:
        cell = check_tree(tree)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    del cell["grid"]
    trust(cell["trusted_targets"])
    return cell
