"""From config nodes to objects: the one place that instantiates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from zolab.config import TARGETS, is_trusted
from zolab.config.fields import AUTO, TARGET
from zolab.errors import UserError, first_line

_trusted: set[str] = set()


def trust(targets: Iterable[str]) -> None:
    """Let `build` make objects of these classes or packages, besides those of zolab itself."""
    _trusted.update(targets)


def build(node: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Make the object a config node describes: `_target_` with the node's keys as arguments.

    Nested nodes with a `_target_` are made first; one that says `auto` becomes None, which leaves
    the choice to the class. Labels such as `name` are not passed on. The arguments given here are
    handed to the outermost class as they are.

    Args:
        node: plain dict of a checked config.
        args: positional arguments of the outermost class.
        kwargs: further arguments; one that the node names too replaces it.

    Raises:
        UserError: the target is neither a part of zolab nor trusted (`trusted_targets`), or the
            class refuses its arguments with a `UserError` or a `ValueError`.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    if node.get(TARGET) == AUTO:
        return None
    prepared = {key: value for key, value in _prepare(node).items() if key not in kwargs}
    try:
        # Objects such as a model's parameters must not pass through OmegaConf, which copies.
        factory = hydra.utils.instantiate({**prepared, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        _raise_cause(error)
    try:
        return factory(*args, **kwargs)
    except InstantiationException as error:
        _raise_cause(error)
    except ValueError as error:
        raise UserError(f"{prepared[TARGET]}: {first_line(error)}") from error


def _raise_cause(error: Exception) -> None:
    """Raise what a class said instead of Hydra's wrapping of it."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        raise cause
    if isinstance(cause, ValueError):
        raise UserError(first_line(cause)) from error
    raise error


def _prepare(node: Any) -> Any:
    """A copy without labels, after looking at every target in it."""
    if isinstance(node, list):
        return [_prepare(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get(TARGET)
    if target == AUTO:
        return None
    labels: set[str] = set()
    if target is not None:
        if target not in TARGETS and not is_trusted(str(target), _trusted):
            raise UserError(
                f"{TARGET} = {target!r}: neither a part of zolab nor listed in trusted_targets"
            )
        fields = dataclasses.fields(TARGETS[target]) if target in TARGETS else ()
        labels = {field.name for field in fields if field.metadata.get("label")}
    return {key: _prepare(value) for key, value in node.items() if key not in labels}
