"""Our optimizer repeats recorded runs of public programs, step by step.

`python -m pytest tests/golden --golden DIR` runs any folder of traces in the format described in
`traces/README.md`; without it the traces that come with the tests.
"""

from __future__ import annotations

from pathlib import Path

from tests.golden.repeat import run_trace


def test_trace(trace_path: Path) -> None:
    run_trace(trace_path)
