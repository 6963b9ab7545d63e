"""Where cells run, chosen by `kind`."""

# `option` returns dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option

_SIGNALS = "signals on which a cell saves and stops at its next step"


@dataclass
class LocalLauncher:
    """Cells run on this machine, several at a time."""

    name: str = option("local", help="launcher name", label=True)
    parallel: int | None = option(None, min=1, help="cells at a time; null: number of cores")
    threads: int = option(1, min=1, help="CPU threads per cell")
    stop_signals: list[str] = option(["SIGTERM", "SIGUSR2"], help=_SIGNALS)


@dataclass
class SlurmLauncher:
    """Cells run as one SLURM array."""

    name: str = option("slurm", help="launcher name", label=True)
    partition: str | None = option(None, help="SLURM partition; null: the default one")
    account: str | None = option(None, help="account that is charged")
    qos: str | None = option(None, help="quality of service")
    gres: str | None = option(None, help="generic resources, such as gpu:a100:1")
    nodes: int = option(1, min=1, help="nodes a cell spans")
    ranks: int = option(1, min=1, help="processes of a cell on each of its nodes")
    gpus: int | None = option(None, min=0, help="GPUs per process; null: 1 if the cluster has any")
    cpus: int = option(4, min=1, help="CPU cores per process")
    memory_gb: float | None = option(None, above=0, help="memory per cell in GB")
    time_minutes: int = option(60, min=1, help="time limit of a job in minutes")
    array_parallelism: int = option(256, min=1, help="array members that may run at a time")
    setup: list[str] = option([], help="shell lines run before the job")
    signal_seconds: int = option(
        120, min=0, help="how long before the time limit a cell is told to save, in seconds"
    )
    stop_signals: list[str] = option(["SIGTERM", "SIGUSR2"], help=_SIGNALS)
    beat_seconds: float = option(30.0, min=30, help="least seconds between a cell's heartbeats")
    report: bool = option(False, help="a job that makes the report once all cells have ended")
