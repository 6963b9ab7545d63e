"""One cell from its run directory to its result, in this process."""

from __future__ import annotations

import inspect
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from zolab import assets, compose
from zolab.checkpoint import Checkpoints, copy_into, load_tensors, save_tensors
from zolab.config.contents import contents, file_hash
from zolab.data import BatchOrder
from zolab.environment import environment, set_threads, versions
from zolab.errors import UserError
from zolab.journal import Journal, header_differences, make_header, read_journal
from zolab.journal import replay as replay_rows
from zolab.learner import Learner, ZerothOrderLearner
from zolab.ledger import (
    Claim,
    Fenced,
    acquire,
    next_attempt,
    read_json,
    write_json,
    write_status,
)
from zolab.memory import PeakMemory
from zolab.models.load import LoadedModel
from zolab.objectives import BatchLoss, MaskedScorer
from zolab.offloading import Work, report, told_in_one_line
from zolab.optim import NUMERICS, ZeroOrder
from zolab.optim.placements import Paired
from zolab.optim.selfcheck import SelfCheckError, settle_placement
from zolab.origin import load_origin, trainable_share
from zolab.prepare import Study, study_of, task_of
from zolab.process import Preempted, describe
from zolab.progress import Progress
from zolab.tally import Counters, Metrics
from zolab.tasks import KINDS
from zolab.tasks.base import fingerprint
from zolab.tracking.schema import SCHEMA_VERSION
from zolab.tracking.wandb import WandbMirror
from zolab.train import Job, train


def run_dir(path: str | Path) -> dict[str, Any]:
    """Run a cell to its end, or continue it; a finished one returns its result at once.

    Args:
        path: run directory with config.yaml.

    Returns:
        The content of result.json.

    Raises:
        zolab.ledger.Busy: another live process holds the cell.
        zolab.ledger.Fenced: another process took it over under way.
        zolab.process.Preempted: it was asked to stop and did, with everything saved.
        UserError: the config, model or data cannot be used, or the disk is full.
    """
    folder = Path(path)
    if (folder / "result.json").exists():
        return read_json(folder / "result.json")
    claim = acquire(folder)
    try:
        if (folder / "result.json").exists():  # finished between the look and the claim
            return read_json(folder / "result.json")
        return _attempt(folder, claim)
    finally:
        claim.release()


def _attempt(folder: Path, claim: Claim) -> dict[str, Any]:
    attempt_dir = next_attempt(folder)
    number = int(attempt_dir.name)
    job: Job | None = None
    exit_code = 1
    try:
        write_status(folder, "running", attempt=number)
        cell = compose.read_cell(folder)
        set_threads(cell)
        write_json(attempt_dir / "env.json", environment())
        begin = time.time()
        claim.beat({"step": 0, "steps": cell["train"]["steps"]}, force=True)
        with claim.keep_alive():
            job = _prepare(folder, cell, claim, number)
        with told_in_one_line():
            outcome = train(job)
        result = {
            "schema": SCHEMA_VERSION,
            "run_id": folder.name,
            "state": "done",
            **outcome,
            "metric": KINDS[cell["task"]["kind"]].metric,
            "num_attempts": number,
            "wall_seconds": time.time() - begin,
            "numerics": NUMERICS,
            "versions": versions(),
            "data": job.data,
            "model": job.model,
        }
        _leave_weights(job, outcome["best"]["step"])
        exit_code = 0
        job.close(exit_code)  # before the result: it means that everything is on disk
        claim.check()
        write_json(folder / "result.json", result)
        write_status(folder, "done", attempt=number)
        job.checkpoints.remove()
        Work(cell, folder, str(number)).clear(all_attempts=True)
        return result
    except Fenced:
        raise  # the directory belongs to someone else: not one byte more
    except Preempted as stop:
        write_status(folder, "preempted", attempt=number, error=str(stop))
        raise
    except KeyboardInterrupt:
        write_status(folder, "preempted", attempt=number, error="interrupted")
        raise
    except BaseException as error:
        _write_error(folder, attempt_dir, number, error)
        raise
    finally:
        if job is not None and exit_code:
            job.close(exit_code)


def replay(run: str | Path, step: int, out: Path) -> None:
    """Rebuild the weights of a run at a step from its base and journal; write a model folder.

    Args:
        run: run directory; the run may still be going on.
        step: updates done; 0 is the start.
        out: folder that `from_pretrained` can load afterwards; of a tuning mode that cannot be
            merged into the model (prefix, prompt, tensor_train), the adapter.

    Raises:
        UserError: the run has no such step, keeps no journal, or what it started from has changed.
    """
    loaded = rebuild(run, step)
    if loaded.tuning.merges:
        loaded.tuning.save_model(loaded.model, out)
    else:
        cell = compose.read_cell(run)
        loaded.tuning.save_adapter(loaded.model, out, base_of(cell), loaded.kind)
    loaded.tokenizer.save_pretrained(out)


def base_of(cell: dict[str, Any]) -> str:
    """Where the model of a cell was loaded from: a folder or a hub name."""
    return str(assets.locate_model(cell["model"]["path"]) or cell["model"]["path"])


def rebuild(run: str | Path, step: int) -> LoadedModel:
    """The model of a run as it was after `step` updates, from its base and journal.

    Raises:
        UserError: the run has no such step, keeps no journal, or what it started from has changed.
    """
    folder = Path(run)
    cell = compose.read_cell(folder)
    header = read_json(folder / "header.json")
    if not header:
        raise UserError(f"{folder}: no header.json, so the run has not begun")
    rows = read_journal(folder)
    work = Work(cell, folder, f"replay-{os.getpid()}")  # a live run has files of its own
    loaded = load_origin(folder, cell, work)
    learner = _build_learner(cell, loaded, work)
    if not isinstance(learner, ZerothOrderLearner):
        return _rebuild_saved(folder, cell, loaded, learner, step)
    if step > len(rows):
        raise UserError(f"--step {step}: the journal of {folder.name} ends at step {len(rows)}")
    optimizer = learner.optimizer
    _use_recorded_placement(optimizer, header)
    _check_header(folder, header, optimizer, cell)
    replay_rows(optimizer, rows[:step])
    optimizer.placement.unbind()
    work.clear()  # what is mapped from there stays for as long as the model does
    return loaded


def _rebuild_saved(
    folder: Path, cell: dict[str, Any], loaded: LoadedModel, learner: Learner, step: int
) -> LoadedModel:
    """The same for methods without a journal: the start, or the best weights they left."""
    path = folder / "best.safetensors"
    if step == 0 or not learner.trains:
        return loaded
    weights, extra = load_tensors(path) if path.exists() else ({}, {})
    if extra.get("step") != step:
        kept = f"step {extra['step']}" if extra else "none yet"
        raise UserError(
            f"--step {step}: a {cell['optimizer']['name']} run keeps no journal to replay, only "
            f"its best weights ({kept}) in {path}"
        )
    copy_into(loaded.model, weights, loaded.trained)
    return loaded


# --- building ----------------------------------------------------------------------------------


def _prepare(folder: Path, cell: dict[str, Any], claim: Claim, number: int) -> Job:
    """Build everything, check it, and bring it to where earlier attempts got."""
    settings = cell["train"]
    task = task_of(cell)
    examples = task.load()
    work = Work(cell, folder, str(number))
    work.clear(all_attempts=True)
    loaded = load_origin(folder, cell, work)
    share, trained = trainable_share(loaded), loaded.trained  # some learners freeze in turns
    learner = _build_learner(cell, loaded, work)
    study = study_of(cell, task, examples, loaded, learner.prompts)
    memory = PeakMemory(loaded.model, study.scorer.device)
    total = settings["steps"]
    progress_label = folder.name[:8]
    metrics = Metrics(folder)
    counters, records = Counters(), []
    journal = None
    checkpoints = Checkpoints(folder, trained)
    if isinstance(learner, ZerothOrderLearner):
        records = read_journal(folder)
        _settle(folder, cell, learner.optimizer, study)
        _resume_journaled(learner, loaded, checkpoints, records)
        journal = Journal(folder / "attempts" / str(number))
    else:
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
        counters=counters,
        data={f"num_{k}": len(v) for k, v in examples.items()}
        | {"fingerprint": fingerprint(examples)},
        model=share | {"revision": cell["model"]["revision"]},
    )


def _build_learner(cell: dict[str, Any], loaded: LoadedModel, work: Work) -> Learner:
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


def _settle(folder: Path, cell: dict[str, Any], optimizer: ZeroOrder, study: Study) -> None:
    """Placement self-check on the first batch, then the header is written or compared."""
    header = read_json(folder / "header.json")
    if header:
        _use_recorded_placement(optimizer, header)
        _check_header(folder, header, optimizer, cell)
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
        _check_header(folder, header, optimizer, cell)
    else:
        write_json(folder / "header.json", _header(folder, optimizer, cell))


def _header(folder: Path, optimizer: ZeroOrder | None, cell: dict[str, Any]) -> dict[str, Any]:
    init = folder / "init.safetensors"
    return make_header(cell, contents(cell), file_hash(init) if init.exists() else None, optimizer)


def _use_recorded_placement(optimizer: ZeroOrder, header: dict[str, Any]) -> None:
    """A self-check may have fallen back in the first attempt: later ones do the same."""
    if header["placement"] != optimizer.placement.name:
        from zolab.optim import placements

        kinds = (placements.InPlace, placements.Paired, placements.PerLayer)
        optimizer.use_placement(next(k for k in kinds if k.name == header["placement"])())


def _check_header(
    folder: Path, header: dict[str, Any], optimizer: ZeroOrder | None, cell: dict[str, Any]
) -> None:
    """Refuse to go on from a base, data, a table or numerics other than the first attempt's."""
    odd = header_differences(header, _header(folder, optimizer, cell))
    if odd:
        raise UserError(
            f"{folder.name} began with other {', '.join(odd)} (header.json): it can only be "
            "continued or replayed with those"
        )


# --- resuming ----------------------------------------------------------------------------------


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


def _leave_weights(job: Job, best_step: int) -> None:
    """Weights that no journal can rebuild stay, at the best dev point."""
    if job.learner.trains and not job.learner.journaled:
        weights = job.checkpoints.load_best(best_step)
        if weights is not None:
            save_tensors(job.run_dir / "best.safetensors", weights, {"step": best_step})


# --- records -----------------------------------------------------------------------------------


def _tell_truncated(progress: Progress, study: Study) -> None:
    splits = study.splits
    cut = {name: sum(e.truncated for e in rows) for name, rows in splits.items()}
    if any(cut.values()):
        side = "" if isinstance(study.scorer, MaskedScorer) else " from the left"
        counts = ", ".join(f"{n} of {len(splits[name])} {name}" for name, n in cut.items() if n)
        progress.say(f"warning: prompts longer than {study.limit} tokens cut{side}: {counts}")


def _write_error(folder: Path, attempt_dir: Path, number: int, error: BaseException) -> None:
    """Traceback beside the attempt, a line in status.json; a full disk must not hide the error."""
    text = "".join(traceback.format_exception(error))
    line = describe(error)
    try:
        (attempt_dir / "error.txt").write_text(text)
        write_status(folder, "failed", attempt=number, error=line)
    except OSError as second:
        print(f"zolab: could not record the failure in {folder}: {second}", file=sys.stderr)
