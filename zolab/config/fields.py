"""Fields of a config dataclass: a default, what values are allowed, and one sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

#: Key of a part's YAML that names its class.
TARGET = "_target_"
#: Value of that key that leaves the choice of the part to the class that takes it.
AUTO = "auto"


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
    expected: str | None = None,
    label: bool = False,
    since: str | None = None,
    counted: bool = True,
) -> Any:
    """Declare one config value.

    Args:
        default: value when the YAML does not give one; without it the value must be given.
        help: one sentence for the reader of the schema.
        min: smallest allowed value (inclusive).
        max: largest allowed value (inclusive).
        above: all values must be greater than this.
        below: all values must be smaller than this.
        choices: the allowed texts.
        pattern: regular expression that a text must match as a whole.
        expected: words for an error message, where the constraint alone does not explain itself.
        label: True for a text that only names the part; it is no argument of the class built.
        since: for a key added to a class that runs were made with: the version of zolab that
            brought it. At its default it does not count in a cell's identity, so that those runs
            keep their names and are continued; the default must then mean what they did.
        counted: False for a key of a part that changes no number of a run, such as where its
            weights lie: it does not count in a cell's identity.
    """
    metadata = {
        "help": help,
        "min": min,
        "max": max,
        "above": above,
        "below": below,
        "choices": choices,
        "pattern": pattern,
        "expected": expected,
        "label": label,
        "since": since,
        "counted": counted,
    }
    if isinstance(default, list | dict):
        value = default
        copy = dict if isinstance(default, dict) else list
        return dataclasses.field(default_factory=lambda: copy(value), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def part(
    slot: str, default: dict[str, Any] | None = None, *, help: str, since: str | None = None
) -> Any:
    """Declare a nested part whose dataclass is chosen by `_target_` (or `kind`), see `PARTS`.

    Args:
        slot: key of `zolab.config.parts.PARTS`.
        default: plain dict used when the part is absent; None if it must be given.
        help: one sentence for the reader of the schema.
        since: as in `option`.
    """
    metadata = {"help": help, "slot": slot, "since": since}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)


def section(cls: type, *, required: bool = False, help: str, since: str | None = None) -> Any:
    """Declare a nested section with a fixed dataclass; absent means defaults unless required."""
    metadata = {"help": help, "section": cls, "since": since}
    if required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=dict, metadata=metadata)
