"""The cells of a command line without running them: what Hydra does before its sweeper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from launchers.expand import cells_of
from zolab import compose
from zolab.compose.repository import read_once
from zolab.config import CONF_DIR


def cells_from(
    overrides: Sequence[str], check: Callable[[Any], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Cells and labels that a command line stands for, composed as a sweep composes them.

    Args:
        overrides: sweeps and experiments included.
        check: resolves and validates one config.

    Raises:
        UserError: the overrides or a cell are not valid.
    """
    prepared = compose.prepare_overrides(word for word in overrides if word != "-m")
    compose.prepare_hydra()
    with (
        compose.told(),
        hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3", job_name="zolab"),
    ):
        running = GlobalHydra.instance().hydra
        master = running.compose_config(
            "config", prepared, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        given = list(OmegaConf.to_container(master.hydra.overrides.task))
        params = dict(master.hydra.sweeper.get("params") or {})
        return cells_of(read_once(running.config_loader), master, given, params, check)
