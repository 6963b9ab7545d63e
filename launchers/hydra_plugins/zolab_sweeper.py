"""Hydra sweeper `zolab`: expands a sweep and hands all its cells to `launchers.sweep` at once.

It lives in the namespace package `hydra_plugins` (no `__init__.py`), where Hydra looks for plugins.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# A plain node: Hydra runs this file before its module is known, which a dataclass cannot stand.
# `params` holds the sweeps of an experiment file: override -> value, list or sweep expression.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="zolab",
    node={"_target_": "hydra_plugins.zolab_sweeper.ZolabSweeper", "params": None},
    provider="zolab",
)


class ZolabSweeper(Sweeper):
    """Runs a sweep through the ledger; ends the process with the status of the sweep.

    Args:
        params: sweeps of an experiment file, see `launchers.expand.expand`.
    """

    def __init__(self, params: Any = None) -> None:
        super().__init__()
        self.params = dict(params or {})
        self.context: HydraContext | None = None
        self.master: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over. The task function is not used: cells run from their files."""
        self.context, self.master = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Expand, check and launch all cells.

        Raises:
            UserError: a mistake of the user; nothing was run.
            SystemExit: with the status of the sweep, if that is not 0. Hydra would turn any other
                exception into status 1.
        """
        from launchers.expand import cells_of
        from launchers.sweep import launch
        from zolab import compose
        from zolab.compose.repository import read_once

        loader = read_once(self.context.config_loader)
        with compose.looked_at_once():
            cells, labels = cells_of(loader, self.master, arguments, self.params, compose.check)
            outcome = launch(cells, cells[0]["launcher"], cells[0]["sweep"], labels=labels)
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
        return outcome
