"""Config files read once for all compositions of a sweep."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.plugins.config_source import ConfigResult


class ReadOnce(IConfigRepository):
    """A config repository that reads and parses each file once.

    Hydra makes a cache for each composition, so a sweep over 50 combinations of group choices
    parses every file 50 times: a third of the time it takes. A composition changes the header and
    the defaults list of what it is given, which are handed out as copies; the config is merged into
    a new one and handed out as it is.

    Args:
        inner: what reads the files.
    """

    def __init__(self, inner: IConfigRepository) -> None:
        self.inner = inner
        self._configs: dict[str, ConfigResult | None] = {}
        self._groups: dict[str, bool] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        return self  # Hydra copies the repository for each composition

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A fresh result around the config of that path; None if there is none."""
        if config_path not in self._configs:
            self._configs[config_path] = self.inner.load_config(config_path=config_path)
        found = copy.copy(self._configs[config_path])
        if found is not None:
            found.header = dict(found.header)
            found.defaults_list = copy.deepcopy(found.defaults_list)
        return found

    def group_exists(self, config_path: str) -> bool:
        """Whether there is a group of that path."""
        if config_path not in self._groups:
            self._groups[config_path] = self.inner.group_exists(config_path=config_path)
        return self._groups[config_path]

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
        """Search other folders; what was read is forgotten."""
        self.inner.initialize_sources(config_search_path)
        self._configs.clear()
        self._groups.clear()


def read_once(loader: Any) -> Any:
    """Hydra's config loader, which from now on reads each file once."""
    if not isinstance(loader.repository, ReadOnce):
        loader.repository = ReadOnce(loader.repository)
    return loader
