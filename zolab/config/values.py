"""One config value against its declared type and limits."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from typing import Any

from zolab.errors import UserError, nearest

#: How YAML and OmegaConf write a value that must still be given.
MISSING = "???"
_INTEGER = re.compile(r"[+-]?\d+")


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type of a config dataclass."""
    return typing.get_type_hints(cls)


def show(value: Any) -> str:
    """A value as an error message prints it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def expected(kind: Any, limits: typing.Mapping[str, Any]) -> str:
    """What a field accepts, in words, such as `a number >= 0`."""
    kind, optional = _unwrap(kind)
    if limits.get("choices"):
        words = "one of " + ", ".join(limits["choices"])
    elif limits.get("expected"):
        words = limits["expected"]
    else:
        words = _noun(kind)
        bounds = [
            f"{sign} {limits[key]:g}" if isinstance(limits[key], float) else f"{sign} {limits[key]}"
            for key, sign in (("min", ">="), ("above", ">"), ("max", "<="), ("below", "<"))
            if limits.get(key) is not None
        ]
        words = " ".join([words, " and ".join(bounds)]).strip()
    return words + (" or null" if optional else "")


def convert(key: str, value: Any, field: dataclasses.Field[Any], kind: Any) -> Any:
    """The value of `field` in its declared type.

    Args:
        key: full dotted key, for messages.
        value: what the YAML or the command line gave.
        field: the declaration made with `zolab.config.fields.option`.
        kind: its resolved type: bool, int, float, str, list[...], dict[...] or `... | None`.

    Raises:
        UserError: wrong type, outside the limits, not finite, or still to be given.
    """
    if isinstance(value, str) and value == MISSING:
        raise UserError(
            f"{key} must be given: {expected(kind, field.metadata)} ({field.metadata['help']})"
        )
    base, optional = _unwrap(kind)
    if value is None and optional:
        return None
    try:
        converted = _typed(value, base)
        _limits(converted, field.metadata)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        raise UserError(
            f"{key} = {show(value)}: expected {expected(kind, field.metadata)}{reason}"
        ) from None
    return converted


def _unwrap(kind: Any) -> tuple[Any, bool]:
    if isinstance(kind, types.UnionType):
        inner = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return inner[0], True
    return kind, False


def _noun(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is list:
        return "a list" if typing.get_args(kind)[0] is Any else "a list of texts"
    if origin is dict:
        return "a mapping"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _typed(value: Any, kind: Any) -> Any:
    """`value` as `kind`; raises ValueError (with a hint or empty) if it is not one."""
    origin = typing.get_origin(kind)
    if origin is list:
        if not isinstance(value, list):
            raise ValueError
        (inner,) = typing.get_args(kind)
        return [plain(item) if inner is Any else _typed(item, inner) for item in value]
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValueError
        return plain(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if kind is str:
        if not isinstance(value, str):
            hint = "put it in quotes" if isinstance(value, bool | int | float) else ""
            raise ValueError(hint)
        if not value:
            raise ValueError("it is empty")
        return value
    if isinstance(value, bool):
        raise ValueError
    return _integer(value) if kind is int else _number(value)


def _integer(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if not isinstance(value, int):
        raise ValueError
    return value


def _number(value: Any) -> float:
    # YAML 1.1 reads 1e-4 (no dot) as text, so numbers in text form are taken as numbers.
    if not isinstance(value, int | float | str):
        raise ValueError
    number = float(value) if not isinstance(value, str) else _parse(value)
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number


def _parse(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError from None


def _limits(value: Any, limits: typing.Mapping[str, Any]) -> None:
    if limits.get("choices") and value not in limits["choices"]:
        raise ValueError(nearest(str(value), limits["choices"]).removeprefix("; "))
    if limits.get("pattern") and not re.fullmatch(limits["pattern"], value):
        raise ValueError
    outside = (
        (limits.get("min") is not None and value < limits["min"])
        or (limits.get("max") is not None and value > limits["max"])
        or (limits.get("above") is not None and value <= limits["above"])
        or (limits.get("below") is not None and value >= limits["below"])
    )
    if outside:
        raise ValueError


def plain(value: Any) -> Any:
    """A deep copy of free-form config (dicts, lists, texts, finite numbers, booleans, null)."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number that is not finite")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value
