"""From overrides to cells: one composition per combination of group choices, values set on copies.

Hydra's own sweeper composes every cell twice, at about 0.1 s each; a thousand cells then take
minutes before the first one starts. Here a cell costs a copy of a composed config.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from launchers.halves import in_halves
from zolab.compose import explain
from zolab.errors import UserError

#: In the repr of a config: a value that is one other value.
_REFERENCE = re.compile(r"'\$\{[\w.]+\}'")
#: One sweep has one folder, one launcher and one answer to finished cells.
_NOT_SWEPT = ("run_root", "launcher", "sweep", "grid", "hydra")


@dataclass(frozen=True)
class Setting:
    """One override of one cell: `text` composes it; if that is None, `value` is set on a copy."""

    key: str
    value: Any
    text: str | None
    shown: str


@dataclass(frozen=True)
class Point:
    """One cell before composition.

    Attributes:
        composed: overrides that need a composition: group choices, additions, deletions.
        values: settings applied to a copy of that composition, in order.
        label: what tells this cell from the others of the sweep, such as "optimizer=mezo seed=0".
    """

    composed: tuple[str, ...]
    values: tuple[Setting, ...]
    label: str


Axes = dict[str, list[Setting]]


def expand(
    arguments: Sequence[str],
    params: Mapping[str, Any] | None,
    grid: Sequence[Mapping[str, Any]] | None,
    is_group: Callable[[str], bool],
) -> list[Point]:
    """All points of a sweep, in the order of the command line, the last key varying fastest.

    Args:
        arguments: overrides of the command line; those with several values cross with all else.
        params: sweeps of an experiment file (`hydra.sweeper.params`), override -> value, list or
            sweep expression such as "0,1,2". The command line goes before them.
        grid: blocks of an experiment file (`grid`), each a mapping from override to value or list.
            Points inside a block are its cross product; blocks are put one after the other. A block
            goes before `params`, the command line before a block.
        is_group: whether a key names a config group rather than a value.

    Raises:
        UserError: a key given twice or that cannot be swept, an unreadable override, or no cell.
    """
    line = _parse_line(arguments, is_group)
    base = _parse_params(params or {}, is_group)
    points: list[tuple[Setting, ...]] = []
    for number, block in enumerate(grid or [{}]):
        axes = {**base, **_parse_block(number, block, is_group), **line}
        points += itertools.product(*axes.values())
    if not points:
        raise UserError("the sweep has no cell: one of its lists is empty")
    shown = _varying(points)
    return [
        Point(
            composed=tuple(s.text for s in point if s.text is not None),
            values=tuple(s for s in point if s.text is None),
            label=" ".join(s.shown for s in point if s.key in shown),
        )
        for point in points
    ]


def compose_points(
    points: Iterable[Point],
    compose: Callable[[list[str]], DictConfig],
    check: Callable[[DictConfig], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """The checked config of each point; equal combinations of group choices are composed once.

    Args:
        points: what `expand` returned.
        compose: from overrides to a composed config.
        check: resolves and validates one config.

    Raises:
        UserError: a cell that does not compose or is not valid; names the cell.
    """

    def make(overrides: tuple[str, ...]) -> DictConfig | dict[str, Any]:
        return _simplest(_composed(compose, list(overrides)))

    points = list(points)
    bases = in_halves(make, list(dict.fromkeys(point.composed for point in points)))
    for point in points:
        try:
            if point.composed not in bases:
                bases[point.composed] = make(point.composed)
            cell = check(_with_values(bases[point.composed], point.values))
        except UserError as error:
            where = f"cell {point.label}: " if point.label else ""
            raise UserError(f"{where}{error}") from error
        yield cell


def cells_of(
    loader: Any,
    master: DictConfig,
    arguments: Sequence[str],
    params: Mapping[str, Any] | None,
    check: Callable[[DictConfig], dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Configs and labels of all cells that a composed multirun config and its overrides stand for.

    Args:
        loader: Hydra's config loader (`hydra_context.config_loader`).
        master: the config Hydra composed for the whole sweep, with its `hydra` node and `grid`.
        arguments: task overrides of the command line.
        params: `hydra.sweeper.params`.
        check: resolves and validates one config.

    Raises:
        UserError: see `expand` and `compose_points`; or cells differ in launcher or sweep options.
    """
    choices = master.hydra.runtime.choices
    grid = OmegaConf.to_container(master, resolve=False).get("grid")

    @functools.cache
    def is_group(key: str) -> bool:
        group = key.partition("@")[0]
        return "/" in group or key in choices or bool(loader.get_group_options(group))

    def compose(overrides: list[str]) -> DictConfig:
        config = loader.load_sweep_config(master, overrides)
        if config.get("grid") is not None and OmegaConf.to_container(config).get("grid") != grid:
            raise UserError("experiments with a grid of their own cannot be swept; run them alone")
        return config

    points = expand(arguments, params, grid, is_group)
    with _garbage_left():
        cells = list(compose_points(points, compose, check))
    for key in ("launcher", "sweep"):
        if any(cell.get(key) != cells[0].get(key) for cell in cells):
            raise UserError(f"{key} differs among the cells; one sweep has one {key} config")
    return cells, [point.label for point in points]


@contextlib.contextmanager
def _garbage_left() -> Iterator[None]:
    """Look for no cycles meanwhile: configs are many small objects, most of which stay."""
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looked:
            gc.enable()


def _parse_line(arguments: Sequence[str], is_group: Callable[[str], bool]) -> Axes:
    axes: Axes = {}
    first: dict[str, str] = {}
    for override in _parse(arguments):
        key, text = _key(override), str(override.input_line)
        if key in axes:
            raise UserError(
                f"{key} is given twice, as {first[key]!r} and {text!r}; "
                f"to sweep over values write {key}=a,b"
            )
        first[key] = text
        axes[key] = _settings(override, is_group)
    return axes


def _parse_params(params: Mapping[str, Any], is_group: Callable[[str], bool]) -> Axes:
    axes: Axes = {}
    for key, value in params.items():
        if isinstance(value, str):
            override = _parse([f"{key}={value}"])[0]
            axes[_key(override)] = _settings(override, is_group)
        else:
            axes[key] = _block_settings(key, value, is_group)
    return axes


def _parse_block(number: int, block: Any, is_group: Callable[[str], bool]) -> Axes:
    if not isinstance(block, Mapping):
        raise UserError(f"grid[{number}]={block!r}: a block is a mapping from override to values")
    return {str(key): _block_settings(str(key), value, is_group) for key, value in block.items()}


def _block_settings(key: str, value: Any, is_group: Callable[[str], bool]) -> list[Setting]:
    """Settings of a YAML value: a list is swept over, all else is one value, strings included."""
    _check_swept(key)
    values = value if isinstance(value, list) else [value]
    return [_setting(key, key, v, is_group(key)) for v in values]


def _settings(override: Override, is_group: Callable[[str], bool]) -> list[Setting]:
    """Settings of an override of the command line; one without a sweep stays as it was written."""
    key, written = _key(override), override.get_key_element()
    if not override.is_sweep_override():
        text = str(override.input_line)
        return [Setting(key, None, text, text)]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: sweep over a list, choice() or range() instead")
    _check_swept(key)
    values = [_plain(value) for value in override.sweep_iterator()]
    return [_setting(key, written, value, is_group(key)) for value in values]


def _setting(key: str, written: str, value: Any, composed: bool) -> Setting:
    text = None
    if composed:
        options = value if isinstance(value, list) else [value]
        chosen = ",".join("null" if option is None else str(option) for option in options)
        # a list chooses several options of one group
        text = f"{written}=[{chosen}]" if isinstance(value, list) else f"{written}={chosen}"
    return Setting(key, value, text, f"{key}={_show(value)}")


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _key(override: Override) -> str:
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def _check_swept(key: str) -> None:
    if key.partition("@")[0].replace("/", ".").split(".")[0] in _NOT_SWEPT:
        raise UserError(f"{key} cannot be swept over: it belongs to the sweep, not to a cell")


def _parse(arguments: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(explain(error)) from error


def _varying(points: Sequence[tuple[Setting, ...]]) -> set[str]:
    """Keys whose value is not the same in all points."""
    seen: dict[str, set[str]] = {}
    for point in points:
        for setting in point:
            seen.setdefault(setting.key, set()).add(setting.shown)
    everywhere = set.intersection(*({s.key for s in point} for point in points))
    return {key for key, shown in seen.items() if len(shown) > 1 or key not in everywhere}


def _composed(compose: Callable[[list[str]], DictConfig], overrides: list[str]) -> DictConfig:
    try:
        config = compose(overrides)
    except HydraException as error:
        raise UserError(explain(error)) from error
    with open_dict(config):
        config.pop("hydra", None)
        config.pop("grid", None)  # it describes the sweep
    return config


def _simplest(config: DictConfig) -> DictConfig | dict[str, Any]:
    """A config without formulas as plain dicts and lists: a copy costs a hundredth.

    A value that is nothing but another one (`${seed}`) is looked up by `zolab.compose.resolve`.
    """
    plain = OmegaConf.to_container(config)
    return config if "${" in _REFERENCE.sub("", repr(plain)) else plain


def _with_values(
    base: DictConfig | dict[str, Any], settings: Sequence[Setting]
) -> DictConfig | dict[str, Any]:
    """A copy of a composed config with some values set."""
    if OmegaConf.is_config(base) or any(map(_is_involved, settings)):
        config = copy.deepcopy(base) if OmegaConf.is_config(base) else OmegaConf.create(base)
        for setting in settings:
            _set(config, setting)
        return config
    config = _copy(base)
    for setting in settings:
        *parents, leaf = setting.key.split(".")
        node = config
        for name in parents:
            inner = node.get(name)
            node[name] = node = inner if isinstance(inner, dict) else {}
        node[leaf] = setting.value
    return config


def _is_involved(setting: Setting) -> bool:
    """Whether setting a value takes more than putting it in its place: it merges or refers."""
    return isinstance(setting.value, dict) or "${" in repr(setting.value) or "[" in setting.key


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node


def _set(config: DictConfig, setting: Setting) -> None:
    """Set one value. Keys that do not exist are added: the check refuses them by the right name."""
    try:
        OmegaConf.update(config, setting.key, setting.value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{setting.shown}: {explain(error)}") from error
