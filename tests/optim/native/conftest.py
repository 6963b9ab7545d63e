"""Every test of the kernels begins with none loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zolab.optim import native


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(autouse=True)
def _fresh(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test finds an empty process state and one cache of this module."""
    monkeypatch.setenv("ZOLAB_CACHE_DIR", str(cache))
    monkeypatch.delenv("ZOLAB_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    native._forget()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    native._forget()


@pytest.fixture
def _built() -> None:
    assert native.available(), native._failure
