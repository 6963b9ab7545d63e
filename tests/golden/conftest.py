"""`--golden DIR`: which folder of recorded traces to run; one test per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TRACES = Path(__file__).parent / "traces"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", default=None, help="folder of golden traces (*.json) to run"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trace_path" not in metafunc.fixturenames:
        return
    # This file may be loaded after the command line was read; then the option was not given.
    folder = Path(metafunc.config.getoption("--golden", default=None) or TRACES)
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder}: no such folder")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise pytest.UsageError(f"--golden {folder}: no *.json file in it")
    metafunc.parametrize("trace_path", paths, ids=[path.stem for path in paths])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """float32 sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
