"""How a process comes to stand where a cell is to go on: model, data, optimizer, journal."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from torch import nn

from zolab import compose
from zolab.checkpoint import Checkpoints
from zolab.config.contents import contents, file_hash
from zolab.data import BatchOrder
from zolab.environment import prepare_process
from zolab.errors import UserError
from zolab.job import Job
from zolab.journal import (
    Journal,
    JournalRow,
    continue_under,
    header_differences,
    make_header,
    read_journal,
)
from zolab.journal import replay as replay_rows
from zolab.learner import Learner, ZerothOrderLearner
from zolab.ledger import (
    Claim,
    read_json,
    write_json,
)
from zolab.memory import PeakMemory
from zolab.models.load import LoadedModel
from zolab.objectives import BatchLoss, MaskedScorer
from zolab.offloading import Work, report
from zolab.optim import NUMERICS, ZeroOrder
from zolab.optim.placements import Paired
from zolab.optim.selfcheck import SelfCheckError, settle_placement
from zolab.origin import load_origin, trainable_share
from zolab.parallel import Ranks, settle_share
from zolab.prepare import Study, keep_states, study_of, task_of
from zolab.progress import Progress
from zolab.tally import Counters, Metrics
from zolab.tasks.base import fingerprint
from zolab.tracking.wandb import WandbMirror
from zolab.train import train
from zolab.watch import Watch


def prepare(
    folder: Path, cell: dict[str, Any], claim: Claim, number: int, ranks: Ranks | None
) -> Job:
    """Build everything, check it, and bring it to where earlier attempts got."""
    settings = cell["train"]
    task = task_of(cell)
    examples = task.load()
    work = Work(cell, folder, str(number))
    work.clear(all_attempts=True)
    loaded = load_origin(folder, cell, work)
    share, trained = trainable_share(loaded), loaded.trained  # some learners freeze in turns
    learner = build_learner(cell, loaded, work)
    study = study_of(cell, task, examples, loaded, learner.prompts)
    memory = PeakMemory(loaded.model, study.scorer.device)
    total = settings["steps"]
    progress_label = folder.name[:8]
    watch = Watch(loaded.model, learner)  # before a resume moves the weights
    metrics = Metrics(folder)
    counters, records = Counters(), []
    journal = None
    checkpoints = Checkpoints(folder, trained)
    if isinstance(learner, ZerothOrderLearner):
        records = read_journal(folder)
        _settle(folder, cell, learner.optimizer, study)
        records = _replayable(folder, checkpoints, records, number)
        _resume_journaled(learner, loaded, checkpoints, records)
        journal = Journal(folder / "attempts" / str(number))
        if ranks is not None:
            rows = [row.to_json() for row in records]
            header = read_json(folder / "header.json")
            ranks.from_leader({"records": rows, "header": header, "attempt": number})
            settle_share(learner, loaded.model, settings, ranks)
    else:
        if ranks is not None:
            raise UserError(
                f"optimizer = {cell['optimizer']['name']}: only forward-only methods run on "
                f"several processes; this cell was started on {ranks.size}"
            )
        _settle_header(folder, cell, None)
        counters = _resume_saved(learner, loaded, checkpoints)
    progress = Progress(total if learner.trains else 0, learner.num_steps, progress_label)
    progress.say(
        f"tuning {share['tuning']}: {share['num_trained']:,} of {share['num_parameters']:,} "
        f"weights train ({100 * share['trained_share']:.3g} %)"
    )
    for line in report(learner):
        progress.say(line)
    _tell_truncated(progress, study)
    if isinstance(learner, ZerothOrderLearner):
        keep_states(cell, study, _trained(learner), progress)
    if learner.num_steps:
        progress.say(f"continuing after step {learner.num_steps} (attempt {number})")
    if cell["tracking"]["wandb"]:
        known = [metrics.rows[step] for step in sorted(metrics.rows)]
        metrics.mirror = WandbMirror(folder, cell, folder.name, known)
    return Job(
        run_dir=folder,
        seed=cell["seed"],
        settings=settings,
        learner=learner,
        study=study,
        claim=claim,
        metrics=metrics,
        journal=journal,
        checkpoints=checkpoints,
        progress=progress,
        memory=memory,
        attempt=number,
        records=records,
        ranks=ranks,
        counters=counters,
        watch=watch,
        data={f"num_{k}": len(v) for k, v in examples.items()}
        | {"fingerprint": fingerprint(examples)},
        model=share | {"revision": cell["model"]["revision"]},
    )


def go_along(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Take the steps of a cell that another process leads; nothing is written here."""
    start = ranks.from_leader()
    cell = compose.read_cell(folder)
    prepare_process(cell)
    task = task_of(cell)
    work = Work(cell, folder, f"rank-{ranks.rank}")
    loaded = load_origin(folder, cell, work)
    trained = loaded.trained
    learner = build_learner(cell, loaded, work)
    study = study_of(cell, task, task.load(), loaded, learner.prompts)
    checkpoints = Checkpoints(folder, trained)
    records = [JournalRow.from_json(row) for row in start["records"]]
    use_recorded_placement(learner.optimizer, start["header"])
    _resume_journaled(learner, loaded, checkpoints, records)
    settings = cell["train"]
    settle_share(learner, loaded.model, settings, ranks)
    with open(os.devnull, "w") as nowhere:
        progress = Progress(settings["steps"], learner.num_steps, folder.name[:8], nowhere)
        job = Job(
            folder, cell["seed"], settings, learner, study, None, Metrics(None), None,
            checkpoints, progress, PeakMemory(loaded.model, study.scorer.device),
            start["attempt"], records=records, ranks=ranks,
        )  # fmt: skip
        keep_states(cell, study, _trained(learner), progress)
        return train(job)


def build_learner(cell: dict[str, Any], loaded: LoadedModel, work: Work) -> Learner:
    """The optimizer: parts for a `ZeroOrder`, the whole model for everything else."""
    from hydra.utils import get_class

    node, model = cell["optimizer"], loaded.model
    cls = get_class(node["_target_"])
    if not issubclass(cls, ZeroOrder):
        given = {"model": model, "seed": cell["seed"]}
        taken = inspect.signature(cls).parameters
        return compose.build(node, **{key: given[key] for key in given if key in taken})
    parts = {"mask": compose.build(cell["sparsity"])}
    if loaded.tuning.frozen_base and node.get("placement", {}).get("_target_") == "auto":
        parts["placement"] = Paired()  # both signs pass the frozen weights in one batch
    elif work.folder is not None:
        parts["placement"] = work.prepare(compose.build(node["placement"]))
    optimizer = compose.build(
        node, model.named_parameters(), seed=cell["seed"], model=model, **parts
    )
    return ZerothOrderLearner(optimizer)


def _trained(learner: ZerothOrderLearner) -> list[nn.Parameter]:
    return [info.param for info in learner.optimizer.infos]


def _settle(folder: Path, cell: dict[str, Any], optimizer: ZeroOrder, study: Study) -> None:
    """Placement self-check on the first batch, then the header is written or compared."""
    # Weights that come and go with each pass make a second pass dear.
    study.scorer.shares = optimizer.placement.keeps_weights
    header = read_json(folder / "header.json")
    if header:
        use_recorded_placement(optimizer, header)
        check_header(folder, header, optimizer, cell)
        return
    settings, examples = cell["train"], study.splits["train"]
    lengths = [e.length for e in examples]
    first = BatchOrder(lengths, settings["batch_size"], cell["seed"]).batch(1)
    size = settings["micro_batch_size"] or len(first)
    batch = study.scorer.batch([examples[i] for i in first[:size]])
    try:
        # By likelihood: accuracy and F1 hide a loss that is not a number, or off by a little.
        settle_placement(optimizer, BatchLoss(study.scorer, [batch], study.likelihood))
    except SelfCheckError as error:
        raise UserError(f"optimizer/placement: {error}") from error
    _settle_header(folder, cell, optimizer)


def _settle_header(folder: Path, cell: dict[str, Any], optimizer: ZeroOrder | None) -> None:
    """Write the header in the first attempt, compare with it in later ones."""
    header = read_json(folder / "header.json")
    if header:
        check_header(folder, header, optimizer, cell)
    else:
        write_json(folder / "header.json", _header(folder, optimizer, cell))


def _header(folder: Path, optimizer: ZeroOrder | None, cell: dict[str, Any]) -> dict[str, Any]:
    init = folder / "init.safetensors"
    return make_header(cell, contents(cell), file_hash(init) if init.exists() else None, optimizer)


def use_recorded_placement(optimizer: ZeroOrder, header: dict[str, Any]) -> None:
    """A self-check may have fallen back in the first attempt: later ones do the same."""
    if header["placement"] != optimizer.placement.name:
        from zolab.optim import placements

        kinds = (placements.InPlace, placements.Paired, placements.PerLayer)
        optimizer.use_placement(next(k for k in kinds if k.name == header["placement"])())


def check_header(
    folder: Path, header: dict[str, Any], optimizer: ZeroOrder | None, cell: dict[str, Any]
) -> None:
    """Refuse to go on from a base, data or a table other than the first attempt's."""
    odd = header_differences(header, _header(folder, optimizer, cell))
    if odd:
        raise UserError(
            f"{folder.name} began with other {', '.join(odd)} (header.json): it can only be "
            "continued or replayed with those"
        )


def _replayable(
    folder: Path, checkpoints: Checkpoints, records: list[JournalRow], number: int
) -> list[JournalRow]:
    """The rows to go on from, cut where this code's numerics are not those that took them."""
    header = read_json(folder / "header.json")
    if header["numerics"] == NUMERICS and not header.get("continued"):
        return records
    saved = checkpoints.newest_step(at_most=len(records))
    now = continue_under(header, records, saved, number)
    if now is None:
        return records
    write_json(folder / "header.json", now)
    return records[:saved]


def _resume_journaled(
    learner: ZerothOrderLearner, loaded: LoadedModel, checkpoints: Checkpoints, records: list
) -> None:
    """The newest checkpoint that the journal reaches, then the journal's rows after it."""
    found = checkpoints.newest(at_most=len(records))
    if found is not None:
        weights, state, extra = found
        checkpoints.restore(loaded.model, weights, learner)
        learner.load_tensors(state, extra["step"])
    replay_rows(learner.optimizer, records)


def _resume_saved(learner: Learner, loaded: LoadedModel, checkpoints: Checkpoints) -> Counters:
    """The newest checkpoint; the steps after it are taken again, with the same numbers."""
    found = checkpoints.newest(at_most=None)
    if found is None:
        return Counters()
    weights, state, extra = found
    checkpoints.restore(loaded.model, weights, learner)
    learner.load_tensors(state, extra["step"])
    return Counters(**extra["counters"])


def _tell_truncated(progress: Progress, study: Study) -> None:
    splits = study.splits
    cut = {name: sum(e.truncated for e in rows) for name, rows in splits.items()}
    if any(cut.values()):
        side = "" if isinstance(study.scorer, MaskedScorer) else " from the left"
        counts = ", ".join(f"{n} of {len(splits[name])} {name}" for name, n in cut.items() if n)
        progress.say(f"warning: prompts longer than {study.limit} tokens cut{side}: {counts}")
