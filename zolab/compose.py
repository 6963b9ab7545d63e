"""From YAML and overrides to a checked cell, its identity and its run directory.

The one place that composes with Hydra and that instantiates. Planning a grid imports no torch:
classes are looked up in `build` only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zolab import assets
from zolab.config import CONF_DIR, GROUPS, TARGETS, check_tree, is_trusted
from zolab.config.contents import (
    contents,
    locate_model,
    locate_task,
    save_hashes,
    split_files,
)
from zolab.config.fields import AUTO, TARGET
from zolab.config.rows import look_over
from zolab.errors import UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Raised when the meaning of a config changes, so that old runs are not taken for new ones.
IDENTITY_FORMAT = 1
#: Keys of `train` that change no number of a run but how often it is looked at.
_CADENCE = ("log_every", "checkpoint_minutes", "eval_batch_size")

_trusted: set[str] = set()


def compose(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "config",
    config_dir: str | Path | None = None,
) -> DictConfig:
    """Compose one config from the YAML files, as the command line does, without checking it.

    Args:
        overrides: Hydra overrides such as `optimizer=mezo` or `optimizer.lr=1e-4`.
        config_name: primary config in the folder.
        config_dir: folder with the YAML files; None for those of zolab.

    Raises:
        hydra.errors.HydraException: unknown group, option or key.
    """
    import hydra

    prepare_hydra()
    folder = Path(config_dir or CONF_DIR).resolve()
    with hydra.initialize_config_dir(str(folder), version_base="1.3", job_name="zolab"):
        return hydra.compose(config_name, overrides=list(overrides))


def prepare_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides ready for Hydra: groups looked up, values left to zolab's own checker.

    A value override `a.b=v` becomes `++a.b=v`: Hydra would refuse a key that the chosen YAML does
    not spell out even where the schema has it; `check` refuses exactly what the schema lacks.
    Sweeps over values stay as they are: the sweeper sets them on copies of one composition.

    Raises:
        UserError: an override that does not parse, a key given twice, or a config group that does
            not exist.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    prepared = []
    given: dict[str, str] = {}
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise UserError(
                f"{text}: not a valid override; expected KEY=VALUE ({_first(error)})"
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
        is_value = "/" not in key and key not in GROUPS and key.split(".")[0] != "hydra"
        if is_value and not override.is_delete() and not override.is_sweep_override():
            text = "++" + text.lstrip("+")
        prepared.append(text)
    return prepared


def explain(error: Exception) -> str:
    """One line for what Hydra or OmegaConf says about a config that cannot be composed."""
    from hydra.errors import MissingConfigException

    message = _first(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = [option for option in error.options or [] if option]
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
        return f"{found[1]}: the chosen {parent or 'config'} has no such part"
    cause = error.__cause__
    return message + (f" ({_first(cause)})" if cause else "")


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
        if not isinstance(node, dict):
            raise UserError(f"launcher profile {file}: expected a mapping of keys to values")
        ConfigStore.instance().store(name=file.stem, node=node, group="launcher", provider="zolab")
        names.append(file.stem)
    return names


def resolve(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A composed config as a plain dict: interpolations resolved, Hydra's own node left out.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        tree = OmegaConf.to_container(
            OmegaConf.create(dict(config)) if not OmegaConf.is_config(config) else config,
            resolve=True,
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"the config is not a mapping but {tree!r}")
    return {str(name): value for name, value in tree.items() if name != "hydra"}


def check(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config of one cell, validated against the schema and the files it names.

    Folders in `model.path` and `task.path` come back absolute, so that a job finds them from any
    working directory; embedded names and hub names stay as they are. `grid` is dropped: it
    describes a sweep, not a cell.

    Raises:
        UserError: unknown key, wrong type, value outside its limits, parts that do not go together,
            a missing model or data folder, or a row of data that the task cannot use.
    """
    cell = check_tree(resolve(config))
    del cell["grid"]
    model_dir, task_dir = locate_model(cell["model"]), locate_task(cell["task"])
    if model_dir is not None and cell["model"]["path"] not in assets.models():
        cell["model"]["path"] = str(model_dir.resolve())
    if cell["task"]["path"] not in assets.tasks():
        cell["task"]["path"] = str(task_dir.resolve())
    look_over(cell["task"], split_files(task_dir))
    trust(cell["trusted_targets"])
    return cell


def identity(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a checked cell that decides its numbers, without what lies behind its paths."""
    model = {key: value for key, value in cell["model"].items() if key not in ("device", "path")}
    task = {key: value for key, value in cell["task"].items() if key != "path"}
    train = {key: value for key, value in cell["train"].items() if key not in _CADENCE}
    return {
        "format": IDENTITY_FORMAT,
        "model": model,
        "task": task,
        "optimizer": cell["optimizer"],
        "sparsity": cell["sparsity"],
        "train": train,
        "seed": cell["seed"],
    }


def run_id(cell: Mapping[str, Any]) -> str:
    """16 hex digits that name a checked cell: same settings and same file contents, same id.

    Paths, devices, tracking, launcher, sweep and the cadence of logs and checkpoints do not count.

    Raises:
        UserError: a data or model file is missing or unreadable.
    """
    whole = {**identity(cell), "contents": contents(dict(cell))}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_cell(cell: Mapping[str, Any]) -> Path:
    """Make the run directory of a checked cell and write its config.yaml, once; returns the folder.

    An existing config of the same identity stays as it is, however the rest differs.

    Raises:
        UserError: run_root is a file or cannot be written, or another cell has the same id.
    """
    name = run_id(cell)
    root = Path(cell["run_root"])
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            _write_once(folder / "config.yaml", cell)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run_root = {str(root)!r}: {_not_a_folder(folder)} is a file") from None
    except OSError as error:
        raise UserError(f"run_root = {str(root)!r}: cannot write there: {error.strerror}") from None
    if not os.access(folder, os.W_OK) and not (folder / "result.json").exists():
        raise UserError(f"run_root = {str(root)!r}: {folder} cannot be written")
    stored = read_cell(folder)
    if identity(stored) != identity(cell):
        raise UserError(
            f"{folder / 'config.yaml'} holds another cell with the same run id; "
            "move that run directory away or choose another run_root"
        )
    save_hashes(root)
    return folder


def _write_once(target: Path, cell: Mapping[str, Any]) -> None:
    """Put a complete file in place or leave an existing one alone (link fails if it exists)."""
    temp = target.with_name(f".{target.name}-{uuid.uuid4().hex}.tmp")
    try:
        with temp.open("x") as file:
            yaml.safe_dump(dict(cell), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temp, target)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink()


def _not_a_folder(folder: Path) -> Path:
    """The first ancestor that exists and is no folder (or the folder itself)."""
    chain = [*reversed(folder.parents), folder]
    return next((path for path in chain if path.exists() and not path.is_dir()), folder)


def read_cell(folder: str | Path) -> dict[str, Any]:
    """The checked config stored in a run directory; also trusts the targets it lists for `build`.

    Raises:
        UserError: there is no config.yaml, or it is not a valid cell of this version.
    """
    file = Path(folder) / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML ({_first(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    try:
        cell = check_tree(tree)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    del cell["grid"]
    trust(cell["trusted_targets"])
    return cell


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
        raise UserError(f"{prepared[TARGET]}: {_first(error)}") from error


def _raise_cause(error: Exception) -> None:
    """Raise what a class said instead of Hydra's wrapping of it."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        raise cause
    if isinstance(cause, ValueError):
        raise UserError(_first(cause)) from error
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


def _first(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
