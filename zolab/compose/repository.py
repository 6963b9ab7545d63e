"""Config files read once for all compositions of a sweep, or of a process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import GroupDefault
from hydra.plugins.config_source import ConfigResult

#: What files are read from; what programs register may be registered anew.
_FILES = ("file:", "pkg:")
_HYDRA = "hydra/config"
#: By folder: see `read_once`.
_shared: dict[Path, ReadOnce] = {}


class ReadOnce(IConfigRepository):
    """A config repository that reads and parses each file once.

    Hydra makes a cache for each composition, so a sweep over 50 combinations of group choices
    parses every file 50 times: a third of the time it takes. A composition changes what it is given
    and takes nodes over, so each gets a copy (by pickle: half the time of `copy.deepcopy`).

    For compositions whose `hydra` node is thrown away: Hydra's own help, output and logging, a
    third of all files, are left out of it.

    Args:
        inner: what reads the files.
    """

    def __init__(self, inner: IConfigRepository) -> None:
        self.inner = inner
        self._configs: dict[str, bytes] = {}
        self._groups: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        return copy.copy(self)  # Hydra copies the repository for each composition

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The config of that path; None if there is none."""
        if config_path in self._configs:
            return pickle.loads(self._configs[config_path])
        found = self.inner.load_config(config_path=config_path)
        if config_path == _HYDRA:
            for default in found.defaults_list:
                if isinstance(default, GroupDefault):
                    default.value = None  # chosen only where something asks for it
        if found is not None and (found.path.startswith(_FILES) or config_path == _HYDRA):
            self._configs[config_path] = pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
        return found

    def group_exists(self, config_path: str) -> bool:
        """Whether there is a group of that path."""
        if config_path not in self._groups and self.inner.group_exists(config_path=config_path):
            self._groups.add(config_path)
        return config_path in self._groups

    def config_exists(self, config_path: str) -> bool:
        """Whether there is a config of that path."""
        return self.inner.config_exists(config_path=config_path)

    def get_group_options(self, group_name: str, *args: Any, **options: Any) -> list[str]:
        """Names of the options of a group."""
        return self.inner.get_group_options(group_name, *args, **options)

    def get_schema_source(self) -> Any:
        """The source of typed schemas."""
        return self.inner.get_schema_source()

    def get_sources(self) -> list[Any]:
        """All sources, in the order they are searched."""
        return self.inner.get_sources()

    def initialize_sources(self, config_search_path: Any) -> None:
        """Search other folders from now on: this copy, not those it shares its files with."""
        self.inner = copy.deepcopy(self.inner)
        self.inner.initialize_sources(config_search_path)
        self._configs, self._groups = {}, set()


def read_once(loader: Any, folder: Path | None = None) -> Any:
    """Hydra's config loader, which from now on reads each file once.

    Args:
        loader: Hydra's config loader.
        folder: its primary folder, if the files there will not change while this process lives;
            what was read for other loaders of that folder is then not read again.
    """
    if not isinstance(loader.repository, ReadOnce):
        loader.repository = _shared.get(folder) or ReadOnce(loader.repository)
    if folder is not None:
        _shared[folder] = loader.repository
    return loader
