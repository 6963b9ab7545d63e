"""What all tests of the command line share."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zolab import cli

RESULT = {
    "state": "done",
    "steps": 4,
    "forwards_total": 8,
    "best": {"step": 2, "dev/accuracy": 0.75, "test/accuracy": 0.5},
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder, where a stray file is seen."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for `zolab.run`: what the command line does around a run needs no training."""
    module = types.ModuleType("zolab.run")
    module.calls = []

    def run_dir(path: Path) -> dict[str, Any]:
        module.calls.append(Path(path))
        return RESULT

    def replay(run: Path, step: int, out: Path) -> None:
        module.calls.append((Path(run), step, Path(out)))

    module.run_dir, module.replay = run_dir, replay
    monkeypatch.setitem(sys.modules, "zolab.run", module)
    monkeypatch.setattr("zolab.run", module, raising=False)
    return module


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give a command that must be refused; the one line on stderr."""

    def give(*arguments: str) -> str:
        status = cli.main(list(arguments))
        said = capsys.readouterr()
        assert status == 2, said
        lines = said.err.strip().splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("zolab: ")
        return lines[0]

    return give
