"""From YAML and overrides to a checked cell, its identity and its run directory.

The one place that composes with Hydra and that instantiates. Planning a grid imports no torch:
classes are looked up in `build` only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zolab import assets
from zolab.compose.building import build, trust
from zolab.compose.cells import read_cell, title, title_of, write_cell
from zolab.compose.overrides import (
    explain,
    prepare_hydra,
    prepare_overrides,
    register_profiles,
    told,
)
from zolab.config import CONF_DIR, check_tree, hub, hub_data
from zolab.config.contents import (
    locate_model,
    locate_task,
    looked_at_once,
    remembered,
    split_files,
    stored_shape,
    uses_shape,
)
from zolab.config.forms import form_of
from zolab.config.identity import identity, run_id
from zolab.config.kinds import look_over_kind
from zolab.config.rows import look_over
from zolab.config.words import look_over_words
from zolab.errors import UserError, first_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: An interpolation that is one other value of the config.
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")

__all__ = [
    "build",
    "check",
    "compose",
    "explain",
    "identity",
    "look_behind",
    "looked_at_once",
    "prepare_hydra",
    "prepare_overrides",
    "read_cell",
    "register_profiles",
    "resolve",
    "run_id",
    "title",
    "title_of",
    "told",
    "trust",
    "write_cell",
]


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
    from hydra.core.global_hydra import GlobalHydra

    from zolab.compose.repository import read_once

    prepare_hydra()
    folder = Path(config_dir or CONF_DIR).resolve()
    with hydra.initialize_config_dir(str(folder), version_base="1.3", job_name="zolab"):
        if folder == CONF_DIR.resolve():  # files of this package
            read_once(GlobalHydra.instance().hydra.config_loader, folder)
        return hydra.compose(config_name, overrides=list(overrides))


def resolve(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A composed config as a plain dict: interpolations resolved, Hydra's own node left out.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    if isinstance(config, dict) and "${" not in repr(config):
        return {name: value for name, value in config.items() if name != "hydra"}
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not OmegaConf.is_config(config):
        plain = _without_references(config)
        if plain is not None:
            return plain
    try:
        tree = OmegaConf.to_container(
            OmegaConf.create(dict(config)) if not OmegaConf.is_config(config) else config,
            resolve=True,
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"the config is not a mapping but {tree!r}")
    return {str(name): value for name, value in tree.items() if name != "hydra"}


def _without_references(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A plain dict whose interpolations are `${KEY}` and nothing else, resolved; None for others.

    OmegaConf takes milliseconds for a config, and a grid has a thousand.
    """

    def look_up(key: str) -> Any:
        node: Any = config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                raise LookupError(key)
            node = node[name]
        if isinstance(node, Mapping | list) or (isinstance(node, str) and "${" in node):
            raise LookupError(key)
        return node

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, str) and "${" in value:
            whole = _REFERENCE.fullmatch(value)
            if whole is None:
                raise LookupError(value)
            return look_up(whole[1])
        return value

    try:
        return {str(name): walk(value) for name, value in config.items() if name != "hydra"}
    except LookupError:
        return None


def check(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config of one cell, validated against the schema and the files it names.

    Folders in `model.path` and `task.path` come back absolute, so that a job finds them from any
    working directory; embedded names and hub names stay as they are. The revision of a hub model
    or data set comes back as a commit, so that a run is named by, and loads, one state of it.
    `grid` is dropped: it describes a sweep, not a cell.

    Raises:
        UserError: unknown key, wrong type, value outside its limits, parts that do not go together,
            a missing model or data folder, a hub model or data set that is neither cached nor
            reachable, a row of data that the task cannot use, or a key of `model.config` that the
            model's own config does not have.
    """
    return look_behind(check_tree(resolve(config)))


def look_behind(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The second half of `check`: what a tree that fits the schema names must be there.

    Args:
        tree: what `zolab.config.check_tree` returned.

    Raises:
        UserError: see `check`.
    """
    cell = {name: value for name, value in tree.items() if name != "grid"}
    cell["model"], cell["task"] = remembered("behind", cell, _behind_paths)
    trust(cell["trusted_targets"])
    return cell


def _behind_paths(cell: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections model and task of a checked cell, once what they name was found and is sound."""
    model_dir, task_dir = locate_model(cell["model"]), locate_task(cell["task"])
    shaped = uses_shape(cell["model"])
    if model_dir is None and not shaped:
        cell["model"]["revision"] = hub.pin(cell["model"])
    elif not shaped and cell["model"]["path"] not in assets.models():
        cell["model"]["path"] = str(model_dir.resolve())
    if task_dir is None:
        cell["task"]["hub"]["revision"] = hub_data.pin(cell["task"]["hub"])
    elif cell["task"]["path"] not in assets.tasks():
        cell["task"]["path"] = str(task_dir.resolve())
    look_over_kind(cell["model"], stored_shape(cell["model"]))
    if cell["model"]["config"] or shaped:
        from zolab.models.keys import look_over_keys

        if shaped:
            look_over_keys(cell["model"]["shape"], None, key="model.shape")
        look_over_keys(
            cell["model"]["config"],
            cell["model"]["shape"] if shaped else stored_shape(cell["model"]),
        )
    if task_dir is not None:
        look_over(form_of(cell), split_files(task_dir))
    look_over_words(cell)
    return cell["model"], cell["task"]
