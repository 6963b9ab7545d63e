"""Models named on the Hugging Face hub: found and pinned to a commit while planning. No torch.

What the local cache holds is used as it is, without asking the hub whether its branch has moved:
a sweep then means the same model from its first cell to its last.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from zolab.errors import UserError, first_line

#: Longest wait for the hub; it is asked once, without the retries of a download.
TIMEOUT_SECONDS = 5.0

COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _WEIGHTS)


def pin(model: dict[str, Any]) -> str:
    """The commit of a hub model: that of the cached snapshot, else what the hub answers.

    Args:
        model: checked `model` section whose `path` is a hub name.

    Raises:
        UserError: the model is not in the cache (for init=pretrained: with its weights), and the
            hub does not have it, cannot be reached or may not be asked (HF_HUB_OFFLINE).
    """
    from huggingface_hub import constants

    # the cache is part of the key, because HF_HOME may point elsewhere in a later call
    return _pin(model["path"], model["revision"], model["init"], constants.HF_HUB_CACHE)


def cached_file(model: dict[str, Any], name: str) -> Path | None:
    """A file of a hub model in the local cache, or None."""
    return _cached(model["path"], model["revision"], name)


@functools.cache
def _pin(path: str, revision: str | None, init: str, cache: str) -> str:
    found = _cached(path, revision, "config.json")
    if found is not None and (init == "random" or _has_weights(path, revision)):
        return found.parent.name
    what = "no such folder, and its weights are" if found else "no such folder, and it is"
    try:
        unknown = f"model.path = {path!r}: no such folder, and no such model on the hub"
        return ask("model", path, revision, "model.revision", unknown)
    except NoAnswer as reason:
        fetch = f"hf download {path}" + (f" --revision {revision}" if revision else "")
        raise UserError(
            f"model.path = {path!r}: {what} not in the cache of the hub ({reason}); "
            f"fetch it where there is a network with `{fetch}`"
        ) from None


class NoAnswer(Exception):
    """Why the hub said neither yes nor no."""


def ask(kind: str, name: str, revision: str | None, key: str, unknown: str) -> str:
    """The commit that the hub names, in one request.

    Args:
        kind: "model" or "dataset".
        name: of its repository.
        revision: branch, tag or commit; None for the main branch.
        key: config key of the revision.
        unknown: what to say if there is no such repository, or none that may be seen.

    Raises:
        UserError: no such repository or revision.
        NoAnswer: the hub may not be asked or does not answer.
    """
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if is_offline_mode():
        raise NoAnswer("HF_HUB_OFFLINE is set")
    request = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        commit = request(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except RevisionNotFoundError:
        raise UserError(
            f"{key} = {revision!r}: {name} has no such commit, tag or branch on the hub"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{unknown}, or a private one (`hf auth login`)") from None
    except Exception as error:  # the transport's own kinds differ between versions of the hub
        raise NoAnswer(f"the hub cannot be reached: {first_line(error)}") from error
    if not commit or not COMMIT.fullmatch(commit):
        raise NoAnswer(f"the hub named no commit but {commit!r}")
    return commit


def _cached(path: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, name, revision=revision)
    except ValueError:  # not a name the hub would give
        return None
    return Path(found) if isinstance(found, str) else None


def _has_weights(path: str, revision: str | None) -> bool:
    if any(_cached(path, revision, name) for name in _WEIGHTS):
        return True
    for name in _INDEXES:
        index = _cached(path, revision, name)
        if index is None:
            continue
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if all(_cached(path, revision, shard) for shard in shards):
            return True
    return False
