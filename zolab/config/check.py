"""Validate a whole config tree against the schema, before anything is built, queued or written."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

from zolab.config.cross import CROSS_CHECKS
from zolab.config.fields import TARGET
from zolab.config.parts import PARTS
from zolab.config.schema import Root
from zolab.config.values import MISSING, convert, hints, plain, show
from zolab.errors import UserError, nearest


def check_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree in declared types, absent keys filled with their defaults.

    Args:
        tree: resolved plain config of one cell (dicts, lists, scalars), without Hydra's own node.

    Returns:
        A new dict in the order of the schema; equal settings give equal dicts whatever way they
        were written (`1` or `1.0`, `"1e-4"` or `1e-4`).

    Raises:
        UserError: an unknown key at any depth (with the nearest valid name), a wrong type, a value
            outside its limits, a missing section, or parts that do not go together.
    """
    trusted = _trusted(tree)
    checked = _check_fields("", tree, Root, trusted)
    for rule in CROSS_CHECKS:
        sentence = rule(checked)
        if sentence:
            raise UserError(sentence)
    return checked


def _trusted(tree: dict[str, Any]) -> tuple[str, ...]:
    field = {field.name: field for field in dataclasses.fields(Root)}["trusted_targets"]
    return tuple(convert(field.name, tree.get(field.name, []), field, hints(Root)[field.name]))


def is_trusted(target: str, trusted: Iterable[str]) -> bool:
    """Whether a dotted path is one of `trusted` or lies inside one of them."""
    return any(target == entry or target.startswith(entry + ".") for entry in trusted)


def _check_fields(
    prefix: str, node: Any, cls: type, trusted: tuple[str, ...], slot: str | None = None
) -> dict[str, Any]:
    """Check one node against its dataclass; `slot` is the part whose choice it is, if any."""
    if not isinstance(node, dict):
        raise UserError(f"{prefix.rstrip('.')} = {show(node)}: expected a section with keys")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    checked: dict[str, Any] = {}
    chooser = PARTS[slot][0] if slot else None
    if chooser is not None:
        checked[chooser] = node.get(chooser)
    for name in node:
        if name != chooser and name not in fields:
            chosen = node.get(chooser) if chooser else None
            raise unknown_key(prefix + str(name), node[name], sorted(fields), chosen, slot)
    for name, field in fields.items():
        key = prefix + name
        value = node[name] if name in node else _default(key, field)
        checked[name] = _check_value(key, value, cls, field, trusted)
    return checked


def _check_value(
    key: str, value: Any, cls: type, field: dataclasses.Field[Any], trusted: tuple[str, ...]
) -> Any:
    if "slot" in field.metadata:
        return _check_part(key, value, field.metadata["slot"], trusted)
    if "section" in field.metadata:
        return _check_fields(key + ".", value, field.metadata["section"], trusted)
    return convert(key, value, field, hints(cls)[field.name])


def without_later_keys(node: dict[str, Any], name: str, cls: type = Root) -> Any:
    """A value of a checked section without the keys that came `since` and are at their default.

    Keys that are not `counted` are left out as well.

    Args:
        node: checked section.
        name: key in it.
        cls: dataclass of the section.

    Returns:
        `node[name]`, at all depths without those keys.
    """
    field = {field.name: field for field in dataclasses.fields(cls)}[name]
    inner = field.metadata.get("section")
    chooser = None
    if "slot" in field.metadata:
        chooser, classes = PARTS[field.metadata["slot"]]
        inner = classes.get(node[name][chooser])
    if inner is None:  # a plain value, or a class outside zolab
        return node[name]
    kept = {} if chooser is None else {chooser: node[name][chooser]}
    for field in dataclasses.fields(inner):
        value = node[name][field.name]
        if not field.metadata.get("counted", True):
            continue
        if field.metadata.get("since"):
            default = _check_value(field.name, _default(field.name, field), inner, field, ())
            if value == default:
                continue
        kept[field.name] = without_later_keys(node[name], field.name, inner)
    return kept


def _default(key: str, field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if "slot" in field.metadata or "section" in field.metadata:
        raise UserError(f"{key} must be given: choose {key}=NAME ({field.metadata['help']})")
    return MISSING


def _check_part(key: str, node: Any, slot: str, trusted: tuple[str, ...]) -> dict[str, Any]:
    chooser, classes = PARTS[slot]
    if not isinstance(node, dict):
        raise UserError(f"{key} = {show(node)}: expected a section with keys")
    choice = node.get(chooser)
    if chooser not in node:
        raise UserError(
            f"{key}.{chooser} must be given: one of {', '.join(classes)}"
            f" (choose {key.replace('.', '/')}=NAME)"
        )
    if isinstance(choice, str) and choice in classes:
        return _check_fields(key + ".", node, classes[choice], trusted, slot)
    if chooser == TARGET and isinstance(choice, str) and is_trusted(choice, trusted):
        # A class outside zolab: its own signature is the only schema there is.
        try:
            return plain(node)
        except ValueError as error:
            raise UserError(f"{key} = {show(node)}: {error}") from None
    hint = nearest(str(choice), classes)
    own = " or a class listed in trusted_targets" if chooser == TARGET else ""
    raise UserError(
        f"{key}.{chooser} = {show(choice)}: expected one of {', '.join(classes)}{own}{hint}"
    )


def unknown_key(
    key: str,
    value: Any,
    siblings: Iterable[str],
    chosen: str | None = None,
    slot: str | None = None,
) -> UserError:
    """The error for a key that does not exist: its value, the nearest name, and what is allowed.

    Args:
        key: full dotted key.
        value: what it was set to.
        siblings: the names that exist in its section.
        chosen: class or kind that decides what the section holds, if any.
        slot: the part it was chosen for; another choice may have the key.
    """
    siblings = list(siblings)
    parent, _, name = key.rpartition(".")
    sibling, elsewhere = nearest(name, siblings), _elsewhere(key)
    # a bare `lr` or `steps` is rather a key without its section than a misspelt section
    hint = (sibling or elsewhere) if parent else (elsewhere or sibling)
    if others := _choices_with(slot, name):
        names = " or ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
        hint = f"; choose {slot.replace('.', '/')}={names} to have it"
    where = f"{parent} has" if parent else "the config has"
    if chosen:
        where = f"{parent} ({chosen}) has"
    allowed = ", ".join(siblings) if siblings else "no keys"
    return UserError(f"{key} = {show(value)}: unknown key{hint} ({where} {allowed})")


def _choices_with(slot: str | None, name: str) -> list[str]:
    """YAML names of the choices of a part that have a key of this name."""
    if slot is None:
        return []
    fields = {
        choice: {field.name: field for field in dataclasses.fields(cls)}
        for choice, cls in PARTS[slot][1].items()
    }
    return [
        choice_name(choice, PARTS[slot][1][choice]) for choice in fields if name in fields[choice]
    ]


def choice_name(choice: str, cls: type) -> str:
    """The YAML file that chooses a class: its label, or its own name as `lazy_low_rank`."""
    for field in dataclasses.fields(cls):
        if field.name == "name" and isinstance(field.default, str):
            return field.default
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", choice.rpartition(".")[2]).lower()


def _elsewhere(key: str) -> str:
    """A hint for a name that exists, or nearly so, in another section (`lr` -> `optimizer.lr`)."""
    by_leaf = {path.rpartition(".")[2]: path for path in reversed(all_keys()) if path != key}
    close = difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=0.8)
    return f"; did you mean {by_leaf[close[0]]!r}?" if close else ""


def all_keys() -> list[str]:
    """Every dotted key of the schema, over all choices of parts, upper levels first."""
    found: list[str] = []
    pending: list[tuple[str, type]] = [("", Root)]
    while pending:
        prefix, cls = pending.pop(0)
        for field in dataclasses.fields(cls):
            key = prefix + field.name
            found.append(key)
            if "slot" in field.metadata:
                classes = PARTS[field.metadata["slot"]][1].values()
            else:
                classes = [field.metadata["section"]] if "section" in field.metadata else []
            pending.extend((key + ".", inner) for inner in classes)
    return list(dict.fromkeys(found))
