"""One cell from its run directory to its result, in this process."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from zolab import assets, compose
from zolab.begin import (
    build_learner,
    check_header,
    go_along,
    prepare,
    use_recorded_placement,
)
from zolab.checkpoint import copy_into, load_tensors, save_tensors
from zolab.environment import environment, prepare_process, versions
from zolab.errors import UserError
from zolab.job import Job
from zolab.journal import check_replayable, read_journal
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
from zolab.models.load import LoadedModel
from zolab.offloading import Work, told_in_one_line
from zolab.optim import NUMERICS
from zolab.origin import load_origin
from zolab.parallel import Ranks, join_ranks
from zolab.process import Preempted, age_seconds, describe
from zolab.tasks import KINDS
from zolab.tracking.schema import SCHEMA_VERSION
from zolab.train import train


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
    ranks = join_ranks(folder)
    try:
        if ranks is not None and not ranks.leads:
            return go_along(folder, ranks)
        with acquire(folder) as claim:
            if (folder / "result.json").exists():  # finished between the look and the claim
                return read_json(folder / "result.json")
            return _attempt(folder, claim, ranks)
    finally:
        if ranks is not None:
            ranks.leave()


def _attempt(folder: Path, claim: Claim, ranks: Ranks | None = None) -> dict[str, Any]:
    attempt_dir = next_attempt(folder)
    number = int(attempt_dir.name)
    job: Job | None = None
    exit_code = 1
    try:
        write_status(folder, "running", attempt=number)
        cell = compose.read_cell(folder)
        prepare_process(cell)
        write_json(attempt_dir / "env.json", environment())
        begin, imported = time.time(), age_seconds()
        claim.beat({"step": 0, "steps": cell["train"]["steps"]}, force=True)
        with claim.keep_alive():
            job = prepare(folder, cell, claim, number, ranks)
        prepared = age_seconds()
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
            "startup": {"imported": imported, "prepared": prepared},
            "numerics": NUMERICS,
            "continued": read_json(folder / "header.json").get("continued", []),
            "versions": versions(),
            "data": job.data,
            "model": job.model,
            **({"ranks": ranks.size, "share": cell["train"]["share"]} if ranks else {}),
        }
        _leave_weights(job, outcome["best"]["step"])
        exit_code = 0
        job.close(exit_code)  # before the result: it means that everything is on disk
        claim.check()
        write_json(folder / "result.json", result)
        write_status(folder, "done", attempt=number)
        claim.tidy()
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
    learner = build_learner(cell, loaded, work)
    if not isinstance(learner, ZerothOrderLearner):
        return _rebuild_saved(folder, cell, loaded, learner, step)
    if step > len(rows):
        raise UserError(f"--step {step}: the journal of {folder.name} ends at step {len(rows)}")
    optimizer = learner.optimizer
    use_recorded_placement(optimizer, header)
    check_header(folder, header, optimizer, cell)
    check_replayable(folder.name, header, step)
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


def _leave_weights(job: Job, best_step: int) -> None:
    """Weights that no journal can rebuild stay, at the best dev point."""
    if job.learner.trains and not job.learner.journaled:
        weights = job.checkpoints.load_best(best_step)
        if weights is not None:
            save_tensors(job.run_dir / "best.safetensors", weights, {"step": best_step})


def _write_error(folder: Path, attempt_dir: Path, number: int, error: BaseException) -> None:
    """Traceback beside the attempt, a line in status.json; a full disk must not hide the error."""
    text = "".join(traceback.format_exception(error))
    line = describe(error)
    try:
        (attempt_dir / "error.txt").write_text(text)
        write_status(folder, "failed", attempt=number, error=line)
    except OSError as second:
        print(f"zolab: could not record the failure in {folder}: {second}", file=sys.stderr)
