"""The schema of a cell's config and its checker; standard library only."""

from __future__ import annotations

from pathlib import Path

from zolab.config.check import all_keys, check_tree, is_trusted, unknown_key
from zolab.config.parts import PARTS, TARGETS
from zolab.config.schema import GROUPS, Root

_PACKAGE = Path(__file__).resolve().parent.parent
#: Folder of the YAML files: inside the package when installed, beside it in a checkout.
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

__all__ = [
    "CONF_DIR",
    "GROUPS",
    "PARTS",
    "TARGETS",
    "Root",
    "all_keys",
    "check_tree",
    "is_trusted",
    "unknown_key",
]
