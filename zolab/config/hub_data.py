"""Data sets of the Hugging Face hub: found in the cache of `datasets` and pinned to a commit.

No torch and no `datasets`: this runs while planning. As for models, what the cache holds is used as
it is, so that a sweep means the same data from its first cell to its last.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from zolab.config.hub import COMMIT, NoAnswer, ask
from zolab.errors import UserError


def pin(hub: dict[str, Any]) -> str:
    """The commit of a hub data set: that of the cached tables, else what the hub answers.

    Args:
        hub: checked `task.hub` section with a name.

    Raises:
        UserError: the data are not in the cache, and the hub does not have them, cannot be reached
            or may not be asked (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE).
    """
    return _pin(hub["name"], hub["config"], hub["revision"], str(cache_dir()))


def cache_dir() -> Path:
    """Where `datasets` keeps its tables: HF_DATASETS_CACHE, or `datasets` in HF_HOME."""
    from huggingface_hub import constants

    given = os.environ.get("HF_DATASETS_CACHE")
    return Path(given or Path(constants.HF_HOME) / "datasets").expanduser()


def cached_tables(cache: Path, name: str, config: str | None, revision: str | None) -> Path | None:
    """Folder of a data set's Arrow files in the cache, the newest that fits; None if there is none.

    The layout is `NAMESPACE___NAME/CONFIG/VERSION/COMMIT` with names in lower snake case. What a
    tag or branch meant when it was fetched is not kept there, so only a commit is looked for.
    """
    commit = revision if revision and COMMIT.fullmatch(revision) else None
    *space, last = name.split("/")
    folder = cache / "___".join([*space, _snake(last)])
    found = [
        entry
        for entry in folder.glob(f"{config or '*'}/*/*")
        if (entry / "dataset_info.json").is_file() and (commit is None or commit == entry.name)
    ]
    if config is None and len({entry.parent.parent.name for entry in found}) > 1:
        names = ", ".join(sorted({entry.parent.parent.name for entry in found}))
        raise UserError(f"task.hub.config must be given: the cache has {names} of {name}")
    return max(found, key=lambda entry: entry.stat().st_mtime, default=None)


def fetch_command(name: str, config: str | None, revision: str | None) -> str:
    """What to run where there is a network."""
    more = f", {config!r}" if config else ""
    more += f", revision={revision!r}" if revision else ""
    return f'python -c "from datasets import load_dataset; load_dataset({name!r}{more})"'


@functools.cache
def _pin(name: str, config: str | None, revision: str | None, cache: str) -> str:
    found = cached_tables(Path(cache), name, config, revision)
    if found is not None:
        return found.name
    try:
        if os.environ.get("HF_DATASETS_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise NoAnswer("HF_DATASETS_OFFLINE is set")
        unknown = f"task.hub.name = {name!r}: no such data set on the hub"
        return ask("dataset", name, revision, "task.hub.revision", unknown)
    except NoAnswer as reason:
        raise UserError(
            f"task.hub.name = {name!r}: not in the cache of datasets ({reason}); fetch it where "
            f"there is a network with `{fetch_command(name, config, revision)}`, or give a folder "
            "in task.path"
        ) from None


def _snake(name: str) -> str:
    """`SetFitData` -> `set_fit_data`, as the cache writes it."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()
