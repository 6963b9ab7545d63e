"""The typed tree of one cell: every section, key, type, default and limit of a config.

Standard library only. `zolab.config.check.check_tree` validates plain dicts against it.
"""

# `option`, `part` and `section` return dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zolab.config.fields import option, part, section

#: Config groups: `GROUP=NAME` on the command line picks `conf/GROUP/NAME.yaml`.
GROUPS = (
    "model",
    "model/tuning",
    "task",
    "optimizer",
    "optimizer/estimator",
    "optimizer/direction",
    "optimizer/rule",
    "optimizer/placement",
    "sparsity",
    "train",
    "tracking",
    "launcher",
    "experiment",
    "debug",
)


@dataclass
class Model:
    """What is trained."""

    name: str = option(help="model name in tables", label=True)
    path: str = option(help="embedded name, a folder, or a hub name such as facebook/opt-125m")
    revision: str | None = option(None, help="commit, tag or branch of a hub model")
    dtype: str = option(
        "float32",
        choices=("float32", "bfloat16", "float16"),
        help="type the weights are held in",
    )
    autocast: str = option(
        "none",
        choices=("none", "bfloat16", "float16"),
        help="type of matrix products in a forward; losses stay float32",
    )
    init: str = option(
        "pretrained",
        choices=("pretrained", "random"),
        help="read the weights, or draw them at random in the model's shape",
    )
    config: dict[str, Any] = option({}, help="keys of the model's own config to replace")
    kind: str = option(
        "causal",
        choices=("causal", "masked"),
        since="0.2",
        help="predicts the next token, or a masked one",
    )
    shape: dict[str, Any] = option(
        {},
        since="0.2",
        help="config of a hub model, so that init=random and `zolab plan` need no download",
    )
    bos: str = option(
        "auto",
        since="0.2",
        help="token before every text: auto (as the model was trained), never, or a token",
    )
    tuning: Any = part("model.tuning", {"kind": "full"}, since="0.2", help="which weights train")
    attn_implementation: str | None = option(None, help="attention kernel; null: the default")
    linear: str = option(
        "auto",
        choices=("auto", "torch", "onednn"),
        since="0.2.0",
        help="what multiplies float32 linear layers on a CPU; auto: oneDNN on AMD with AVX-512",
    )
    device: str = option(
        "auto",
        pattern=r"auto|cpu|cuda(:\d+)?",
        expected="auto, cpu, cuda or cuda:N",
        help="where it runs; not part of a cell's identity",
    )
    device_map: str | None = option(
        None,
        since="0.2",
        help="how accelerate spreads a model over devices, such as auto or balanced; null: not",
    )


@dataclass
class Train:
    """The loop."""

    steps: int = option(800, min=0, help="optimizer steps")
    batch_size: int = option(16, min=1, help="examples per step")
    micro_batch_size: int | None = option(
        None, min=1, help="examples per forward pass; null: the whole batch"
    )
    eval_every: int = option(100, min=1, help="steps between dev evaluations")
    log_every: int = option(10, min=1, help="steps between rows of metrics")
    checkpoint_minutes: float = option(10.0, min=0, help="minutes between checkpoints")
    share: str = option(
        "data",
        choices=("data", "probe", "sign"),
        help="what the processes of a cell share out: examples, probes or the signs of a probe",
        since="0.2.0",
    )
    agree_every: int = option(
        100, min=1, help="steps between comparisons of the processes' weights", since="0.2.0"
    )
    lr_schedule: str = option(
        "constant", choices=("constant", "linear"), help="constant, or linear down to 0"
    )
    max_nonfinite: int = option(
        50, min=1, help="steps in a row with a non-finite loss before the run stops"
    )
    select_by: str = option(
        "loss", choices=("loss", "accuracy", "f1"), help="dev metric that picks the best step"
    )
    objective: str = option(
        "auto",
        choices=("auto", "options", "lm", "accuracy", "f1"),
        help="what is minimised; auto: the task's own, accuracy and f1: minus that metric",
        since="0.2",
    )
    eval_batch_size: int = option(64, min=1, help="token rows per forward pass of an evaluation")
    keep_lower_gb: float = option(
        0.0,
        min=0,
        help="GB for what layers below all that trains make of train and dev rows, kept over "
        "epochs; 0: it is made in every step",
        since="0.2.0",
    )
    capture: bool = option(
        False,
        help="forwards as CUDA graphs, one a batch shape; needs optimizer/placement=in_place",
        since="0.2.0",
        counted=False,
    )
    lag: int = option(
        0,
        min=0,
        max=64,
        help="steps that may be under way on the device before the host reads the losses of the "
        "oldest; same results, the journal lags as much",
        since="0.2.0",
        counted=False,
    )


@dataclass
class Tracking:
    """Where rows go besides the local files."""

    name: str = option("wandb", help="tracking name", label=True)
    wandb: bool = option(True, help="mirror rows to wandb")
    mode: str = option(
        "offline", choices=("offline", "online"), help="wandb mode; online needs a login"
    )
    project: str = option("zolab", help="wandb project")
    entity: str | None = option(None, help="wandb entity; null: your default")
    group: str | None = option(None, help="wandb group; null: the sweep")
    tags: list[str] = option([], help="wandb tags")


@dataclass
class Sweep:
    """What a sweep does with cells that are done, failed or running."""

    wait: bool | None = option(
        None, help="stay until all cells ended; null: yes on this machine, no on SLURM"
    )
    retry: str = option(
        "none",
        choices=("none", "failed", "cancelled", "all"),
        help="which ended cells to run again",
    )
    force: bool = option(False, help="run finished cells again from the start")
    dry_run: bool = option(False, help="print the plan and stop")


@dataclass(kw_only=True)
class Root:
    """One cell."""

    run_root: str = option("runs", help="folder that holds the run directories")
    seed: int = option(0, min=0, max=2**63 - 1, help="seed of data order, directions and masks")
    model: Any = section(Model, required=True, help="what is trained")
    task: Any = part("task", help="what it is trained on")
    optimizer: Any = part("optimizer", help="how it is trained")
    sparsity: Any = part("sparsity", {"_target_": "zolab.optim.Dense"}, help="which weights move")
    train: Any = section(Train, help="the loop")
    tracking: Any = section(Tracking, help="where rows go")
    launcher: Any = part("launcher", {"kind": "local"}, help="where cells run")
    sweep: Any = section(Sweep, help="what a sweep does with cells it meets")
    grid: list[Any] | None = option(
        None, help="blocks of override -> value or list, expanded by a sweep"
    )
    trusted_targets: list[str] = option(
        [], help="classes or packages outside zolab that `_target_` may name"
    )
