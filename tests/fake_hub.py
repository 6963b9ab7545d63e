"""A cache of the hub as a download would leave it, made of the embedded model."""

from __future__ import annotations

import shutil
from pathlib import Path

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


def use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hub's library look into `cache` and forget what was found before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    hub._pin.cache_clear()
    return cache
