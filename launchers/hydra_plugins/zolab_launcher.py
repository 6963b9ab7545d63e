"""Hydra launcher `zolab`: lets other sweepers (a parameter search) run cells through the ledger.

A sweeper needs the objective of each cell, so this launcher always waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/launcher",
    name="zolab",
    node={"_target_": "hydra_plugins.zolab_launcher.ZolabLauncher"},
    provider="zolab",
)


class ZolabLauncher(Launcher):
    """Composes, checks and runs the cells a sweeper asks for; finished ones are not run again."""

    def __init__(self) -> None:
        super().__init__()
        self.context: HydraContext | None = None
        self.master: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over. The task function is not used: cells run from their files."""
        self.context, self.master = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run one cell per list of overrides.

        Returns:
            One `JobReturn` per cell in order: its value is the dev metric at the best step, the one
            `train.select_by` names; for a cell without a result it is an error that is raised when
            the sweeper asks for the value.
        """
        from launchers.sweep import launch
        from zolab import compose

        loader = self.context.config_loader
        cells = [
            compose.check(loader.load_sweep_config(self.master, list(overrides)))
            for overrides in job_overrides
        ]
        labels = [" ".join(overrides) for overrides in job_overrides]
        sweep = {**cells[0]["sweep"], "wait": True}
        outcome = launch(cells, cells[0]["launcher"], sweep, labels=labels)
        entries = {entry.run_id: entry for entry in outcome.plan.entries}
        return [
            _job_return(overrides, cell, entries[compose.run_id(cell)])
            for overrides, cell in zip(job_overrides, cells, strict=True)
        ]


def _job_return(overrides: Sequence[str], cell: dict[str, Any], entry: Any) -> JobReturn:
    from zolab import ledger

    job = JobReturn(overrides=list(overrides), working_dir=str(entry.run_dir))
    if entry.state == "done":
        best = ledger.read_json(Path(entry.run_dir) / "result.json").get("best") or {}
        job.status = JobStatus.COMPLETED
        job.return_value = best.get(f"dev/{cell['train']['select_by']}")
    else:
        job.status = JobStatus.FAILED
        job.return_value = RuntimeError(f"cell {entry} is {entry.state}: {entry.error}")
    return job
