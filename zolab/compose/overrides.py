"""Overrides, plugins and site files on their way into Hydra, and what Hydra says in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from zolab.config import CONF_DIR, GROUPS
from zolab.errors import UserError, first_line, nearest

#: Groups of which none need be chosen.
_OPTIONAL = ("experiment", "debug")


def prepare_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides ready for Hydra: groups looked up, values left to zolab's own checker.

    A value override `a.b=v` becomes `++a.b=v`: Hydra would refuse a key that the chosen YAML does
    not spell out even where the schema has it; `check` refuses exactly what the schema lacks.
    Sweeps over values stay as they are: the sweeper sets them on copies of one composition.
    `experiment=null` and `debug=null` are left out: nothing is chosen there anyway.

    Raises:
        UserError: an override that does not parse, a key given twice, or a config group that does
            not exist or is set to something else than the name of a choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    prepared = []
    given: dict[str, str] = {}
    for text in map(_quoted, overrides):
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise UserError(
                f"{text}: not a valid override; expected KEY=VALUE ({first_line(error)})"
            ) from None
        key = override.key_or_group
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        given[key] = text
        if "/" in key and key.split("/")[0] != "hydra" and key not in GROUPS:
            raise UserError(
                f"{text}: unknown config group {key!r}{nearest(key, GROUPS)} "
                f"(groups: {', '.join(GROUPS)})"
            )
        if key in GROUPS and not override.is_delete():
            if key in _OPTIONAL and override.value() is None:
                continue
            _look_over_choice(text, override)
        is_value = "/" not in key and key not in GROUPS and key.split(".")[0] != "hydra"
        if is_value and not override.is_delete() and not override.is_sweep_override():
            text = "++" + text.lstrip("+")
        prepared.append(text)
    return prepared


def _quoted(text: str) -> str:
    """The override with its value in quotes where Hydra's grammar, which is ASCII, needs them."""
    key, equals, value = text.partition("=")
    if value.isascii() or not value.isprintable() or set(value) & set("'\"[]{}(),\\$"):
        return text
    return f"{key}{equals}'{value}'"


def _look_over_choice(text: str, override: Any) -> None:
    """Refuse values of a config group that name no choice; Hydra answers them with a traceback."""
    value = override.value()
    for choice in getattr(value, "list", [value]) if override.is_sweep_override() else [value]:
        names = choice if isinstance(choice, list) else [choice]
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{text}: {override.key_or_group} takes the name of a choice")


#: Why a choice may lack a part.
_WITHOUT = {"optimizer/placement": " (it evaluates no perturbed losses)"}


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What Hydra, OmegaConf or YAML say against a composition, as a UserError of one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{_file_read(error)} is not UTF-8 text ({error})") from error
    except ValueError as error:
        # Hydra's word for a group set to null or a number, here from the `grid` of an experiment
        if not str(error).startswith("Config group override must be"):
            raise
        raise UserError(f"a config group takes the name of a choice ({error})") from error


def _file_read(error: UnicodeDecodeError) -> str:
    """The file that was being read: Hydra does not say which."""
    name = "a YAML file of the config"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, io.TextIOWrapper) and value.mode == "r":
                name = str(value.name)
    return name


def explain(error: Exception) -> str:
    """One line for what Hydra or OmegaConf says about a config that cannot be composed."""
    from hydra.errors import MissingConfigException

    message = first_line(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = _choices(group) or [option for option in error.options or [] if option]
        return f"{group or 'config'} = {name!r}: no such choice{nearest(name, options)}" + (
            f" (choices: {', '.join(options)})" if options else ""
        )
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}:{mark.line + 1}: " if mark else ""
        return f"{where}not valid YAML ({error.problem})"
    if found := re.match(r"Ambiguous value for argument '\+*(.*)'", message):
        return f"{found[1]}: several values; add -m to run them all, or write a list as [a,b]"
    if found := re.match(r"Could not override '([\w/]+)'\. No match", message):
        parent = found[1].rpartition("/")[0]
        reason = _WITHOUT.get(found[1], "")
        return f"{found[1]}: the chosen {parent or 'config'} has no such part{reason}"
    cause = error.__cause__
    return message + (f" ({first_line(cause)})" if cause else "")


def _choices(group: str) -> list[str]:
    """Names in a folder below a group, of which Hydra knows only those of the group itself."""
    files = (CONF_DIR / group).glob("*.yaml") if "/" in group else ()
    return sorted(file.stem for file in files)


def prepare_hydra() -> None:
    """Let Hydra find the sweeper plugin and the site files of `launchers/profiles`.

    Installed packages are found anyway; a plain checkout has the plugin below `launchers`, where
    Hydra looks only if that folder is on the search path of Python.
    """
    spec = importlib.util.find_spec("launchers")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    try:
        found = importlib.util.find_spec("hydra_plugins.zolab_sweeper")
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.path.append(str(folder))
    register_profiles(folder / "profiles")


def register_profiles(folder: Path) -> list[str]:
    """Make each `NAME.yaml` of a folder choosable as `launcher=NAME`; returns the names.

    A file of the same name in `conf/launcher` or in `--config-dir` comes first.

    Raises:
        UserError: a profile is not valid YAML.
    """
    from hydra.core.config_store import ConfigStore

    names = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            node = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            raise UserError(f"launcher profile {file}: {explain(error)}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"launcher profile {file}: not UTF-8 text ({error})") from None
        if not isinstance(node, dict):
            raise UserError(f"launcher profile {file}: expected a mapping of keys to values")
        ConfigStore.instance().store(name=file.stem, node=node, group="launcher", provider="zolab")
        names.append(file.stem)
    return names
