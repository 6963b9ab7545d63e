"""A cache of the hub as a download would leave it, made of the embedded model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from zolab import assets
from zolab.config import hub

COMMIT = "a1" * 20


def fill(
    cache: Path, name: str = "facebook/opt-125m", commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Put the embedded model into a cache under a hub name; returns the folder of its snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    snapshot = folder / "snapshots" / commit
    if not snapshot.exists():
        shutil.copytree(assets.model_dir("opt-prompt-2m"), snapshot)
    return snapshot


def stub(cache: Path, name: str, shape: dict[str, Any]) -> None:
    """A model of which planning finds all it asks for: a config and a file of weights, empty."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(shape))
    (snapshot / "model.safetensors").touch()


def use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hub's library look into `cache` and forget what was found before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    hub._pin.cache_clear()
    return cache
