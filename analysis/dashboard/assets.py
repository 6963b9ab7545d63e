"""Style and script of the pages, as text."""

from __future__ import annotations

from importlib import resources


def asset(name: str, package: str = "analysis.dashboard") -> str:
    """Text of a file of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
