"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from zolab.checkpoint import weights_hash
from zolab.data import BatchOrder
from zolab.errors import UserError
from zolab.evaluate import evaluate
from zolab.job import Job
from zolab.journal import JournalRow
from zolab.learner import Reader
from zolab.memory import EVALUATION, STEPS
from zolab.objectives import PAD_UNIT, BatchLoss, Scorer
from zolab.objectives.captured import graphs_for
from zolab.optim import StepRecord
from zolab.parallel import SharedLoss, agree, share_of
from zolab.process import Preempted, age_seconds, stop_asked
from zolab.taken import Taken, lag_of
from zolab.tally import Counters, Since, columns_of


def train(job: Job) -> dict[str, Any]:
    """Train from wherever the job stands to its last step; returns the outcome.

    Returns:
        weights_hash of the final weights, best and final metrics, totals; see result.json.

    Raises:
        UserError: the disk is full, or too many losses in a row were not finite.
        zolab.ledger.Fenced: another process took this run over.
        zolab.process.Preempted: this process was asked to stop; everything is saved.
    """
    loop = _Loop(job)
    loop.catch_up()
    loop.stop_if_asked()
    while loop.step < loop.total:
        loop.take_step()
    return loop.finish() if job.leads else {}


class _Loop:
    def __init__(self, job: Job) -> None:
        self.job = job
        settings = job.settings
        self.total = settings["steps"] if job.learner.trains else 0
        unit = [-(-e.length // PAD_UNIT) for e in job.splits["train"]]
        self._tokens = [e.num_tokens for e in job.splits["train"]]
        self.order = BatchOrder(unit, settings["batch_size"], job.seed)
        self.base_lr = [group["lr"] for group in job.learner.param_groups]
        self.graphs = None
        if settings["capture"] and job.learner.trains:
            placement = job.learner.placement.name
            self.graphs = graphs_for(job.scorer.model, placement, job.scorer.autocast)
        job.learner.offer_data(self._whole)
        self.taken = Taken(lag_of(job), self._note)
        self.reader: Scorer | Reader = job.scorer
        rows = [row for step, row in job.metrics.rows.items() if step <= self.step]
        self.train_seconds = self._seconds_so_far(rows)
        self._since = Since()
        self._saved, self._saved_step = time.monotonic(), self.step
        self._evaluation_seconds = 0.0
        self._last_loss: float | None = None
        self._shown = False
        self._startup: float | None = None
        self._evaluated: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        for row in sorted(rows, key=lambda row: row["step"]):
            self._consider(row)

    @property
    def step(self) -> int:
        return self.job.learner.num_steps

    def _seconds_so_far(self, rows: list[dict[str, Any]]) -> float:
        """Training time of earlier attempts; steps after their last row count at its pace."""
        last = max(rows, key=lambda row: row["step"], default={})
        pace = last.get("perf/step_seconds", 0.0)
        return last.get("train_seconds", 0.0) + pace * (self.step - last.get("step", self.step))

    # -- steps -----------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Before the first step, or after a resume: the row of the step we stand at may be due."""
        job = self.job
        if job.records:
            job.counters = Counters()
            for row in job.records:
                self._count(row, self.order.batch(row.step))
        elif self.step and not job.counters.tokens:  # saved before tokens were counted
            each = job.counters.forwards // self.step
            steps = range(1, self.step + 1)
            read = sum(self._tokens[i] for step in steps for i in self.order.batch(step))
            job.counters.tokens = each * read
        size = job.settings["eval_batch_size"]
        self.reader = job.learner.reader(job.scorer, job.splits["train"], size)
        if self._is_due(self.step):
            self._row(job.records[-1] if job.records else None)

    def take_step(self) -> None:
        """One step: batch, losses, update, journal, and a row if one is due.

        Under `train.lag` the losses of this step may still be made when it ends.
        """
        learner, step = self.job.learner, self.step + 1
        begin = time.perf_counter()
        self._set_lr(step)
        indices = self.order.batch(step)
        closure = self._closure(indices)
        since, clock = self._since, learner.clock
        since.data += time.perf_counter() - begin
        before = replace(clock) if clock is not None else None
        closure.clock = clock
        started = time.perf_counter()
        learner.step(closure)
        since.note(time.perf_counter() - started, closure, before)
        self.taken.put(learner.taken if self.taken.lag else learner.last, indices)
        if self._is_due(step):
            self.taken.read()
        seconds = time.perf_counter() - begin
        self.train_seconds += seconds
        since.steps += 1
        since.seconds += seconds
        self._agree_if_due()
        if self._is_due(step):
            self._row(learner.last)
        self.stop_if_asked()
        self._checkpoint_if_due()

    def _note(self, record: StepRecord, indices: Sequence[int]) -> None:
        """The losses of a step are here."""
        job = self.job
        if job.journal is not None:
            job.claim.glance()
            job.journal.append(record)
        self._count(record, indices)
        self._startup = self._startup or age_seconds()
        job.progress.step(record.step, record.loss, record.num_forwards)
        self._beat(record.loss)
        if job.counters.nonfinite_in_a_row >= job.settings["max_nonfinite"]:
            raise UserError(
                f"train.max_nonfinite = {job.settings['max_nonfinite']}: that many losses in a row "
                f"were not finite, the last at step {record.step}; try a lower optimizer.lr"
            )

    def finish(self) -> dict[str, Any]:
        """The outcome, once the last row is written."""
        job = self.job
        row = job.metrics.rows[self.total]
        best_step = row["test/step"]
        best_row = job.metrics.rows[best_step]
        keys = [k for k in row if k.startswith(("dev/", "test/")) and k != "test/step"]
        return {
            "weights_hash": self.final_hash,
            "steps": self.total,
            "forwards_total": job.counters.forwards,
            "train_seconds": self.train_seconds,
            "first_step_seconds": self._startup,
            **self._memory(),
            "nonfinite_total": job.counters.nonfinite,
            "best": {
                "step": best_step,
                **{k: best_row[k] for k in keys if k.startswith("dev/")},
                **{k: row[k] for k in keys if k.startswith("test/")},
            },
            "final": {k: row[k] for k in keys if k.startswith("dev/")},
        }

    # -- rows ------------------------------------------------------------------------------------

    def _is_due(self, step: int) -> bool:
        """Whether a step has a row."""
        log = step % self.job.settings["log_every"] == 0
        return self.job.leads and (log or self._is_evaluated(step))

    def _is_evaluated(self, step: int) -> bool:
        return step % self.job.settings["eval_every"] == 0 or step == self.total

    def _row(self, record: StepRecord | JournalRow | None) -> None:
        """Write the row of the present step; `record` None before any step."""
        step = self.step
        last, evaluated = step == self.total, self._is_evaluated(step)
        known = self.job.metrics.rows.get(step)
        if last:
            self.job.learner.flush()
            self.final_hash = weights_hash(self.job.scorer.model)
        if known is None:
            journaled = self.job.learner.journaled
            row: dict[str, Any] = {"step": step, **self.job.counters.columns(step, journaled)}
            row |= self._first() if record is None else columns_of(record, journaled)
            if evaluated:
                self.job.learner.flush()
                row |= self._moved() | self._evaluate("dev")
        else:
            row = known
        if evaluated and self._consider(row) and self.job.learner.trains:
            self.job.checkpoints.save_best(self.job.scorer.model, step)
        if known is not None:
            return
        if last:
            row |= self._test()
        row |= self._measured()
        self.job.claim.check()
        self.job.metrics.write(row)
        if evaluated:
            self._evaluated = {k: v for k, v in row.items() if k.startswith("dev/")}
            self.job.progress.evaluated(step, row)
        if self.job.watch is not None:
            self.job.watch.tell(self.job.metrics.rows, self.job.progress)

    def _first(self) -> dict[str, float]:
        return {} if self.job.watch is None else self.job.watch.facts()

    def _moved(self) -> dict[str, float]:
        return {} if self.job.watch is None else self.job.watch.moved()

    def _measured(self) -> dict[str, Any]:
        since, device = self._since, self.job.scorer.device
        out: dict[str, Any] = {
            "train_seconds": self.train_seconds,
            "gpu_seconds": self.train_seconds if device.type == "cuda" else 0.0,
            **{f"perf/{name}": value for name, value in self._memory().items()},
            "time": time.time(),
            "attempt": self.job.attempt,
        }
        if since.steps:
            out |= since.means()
            if self.job.ranks is not None:
                out["perf/payload_bytes"] = self.job.ranks.payload_bytes / since.steps
                self.job.ranks.payload_bytes = 0
        self._since = Since()
        if self._evaluation_seconds:
            out["perf/evaluation_seconds"] = self._evaluation_seconds
        self._evaluation_seconds = 0.0
        return out

    def _memory(self) -> dict[str, int]:
        """Peak of the steps (of evaluating, if none was taken), and what it is to be seen from."""
        memory = self.job.memory
        memory.lap(STEPS if self.job.learner.trains else EVALUATION)
        evaluation = memory.peak(EVALUATION)
        return {
            "peak_bytes": memory.peak(STEPS) or evaluation,
            "eval_peak_bytes": evaluation,
            "base_bytes": memory.base,
        }

    def _evaluate(self, split: str) -> dict[str, float]:
        job, study, size = self.job, self.job.study, self.job.settings["eval_batch_size"]
        if job.learner.trains:
            job.memory.lap(STEPS)
        begin = time.perf_counter()
        row = evaluate(
            self.reader, study.splits[split], size, self._between, study.likelihood, study.generator
        ).row(split)
        self._evaluation_seconds += time.perf_counter() - begin
        job.memory.lap(EVALUATION)
        facts = job.learner.facts
        return row | {key: facts[key] for key in facts if key.startswith(f"{split}/")}

    def _test(self) -> dict[str, float]:
        """Test is read once, at the best dev point; the model then holds those weights."""
        best_step = self.best[1]
        if best_step != self.total:
            weights = self.job.checkpoints.load_best(best_step)
            if weights is None:
                raise RuntimeError(f"the weights of the best step {best_step} are gone")
            self.job.checkpoints.restore(self.job.scorer.model, weights, self.job.learner)
        return {**self._evaluate("test"), "test/step": best_step}

    def _consider(self, row: dict[str, Any]) -> bool:
        """Whether a row is the best dev point so far; earlier wins a tie."""
        by = self.job.settings["select_by"]
        if f"dev/{by}" not in row:
            return False
        score = row[f"dev/{by}"] * (1.0 if by == "loss" else -1.0)
        better = self.best is None or score < self.best[0] or math.isnan(self.best[0])
        if better:
            self.best = (score, row["step"])
        return better

    # -- helpers ---------------------------------------------------------------------------------

    def _closure(self, indices: Sequence[int]) -> BatchLoss:
        job = self.job
        shared = job.ranks is not None and job.settings["share"] == "data"
        examples = [
            job.splits["train"][i] for i in (share_of(indices, job.ranks) if shared else indices)
        ]
        size = job.settings["micro_batch_size"] or len(examples)
        parts = [examples[i : i + size] for i in range(0, len(examples), size)]
        batches = [job.scorer.batch(part, trains=True) for part in parts]
        if shared:
            return SharedLoss(job.scorer, batches, job.study.objective, ranks=job.ranks)
        late = self.taken.lag > 0
        return BatchLoss(job.scorer, batches, job.study.objective, graphs=self.graphs, late=late)

    def _whole(self) -> Iterator[BatchLoss]:
        """The training set in batches, in its own order."""
        total, size = len(self.job.splits["train"]), self.job.settings["batch_size"]
        for start in range(0, total, size):
            yield self._closure(range(start, min(start + size, total)))

    def _factor(self, step: int) -> float:
        """Linear decay as transformers counts it: the last step still moves."""
        if self.job.settings["lr_schedule"] == "linear":
            return 1.0 - (step - 1) / self.total
        return 1.0

    def _count(self, record: StepRecord | JournalRow, indices: Sequence[int]) -> None:
        batch = [self._tokens[i] for i in indices]
        self.job.counters.add(record.num_forwards, batch, record.coefficients)

    def _set_lr(self, step: int) -> None:
        for base, group in zip(self.base_lr, self.job.learner.param_groups, strict=True):
            group["lr"] = base * self._factor(step)

    def _between(self) -> None:
        """Between two batches of an evaluation, where the weights are clean.

        Without a journal the row of this step must be written first: a resume could not know its
        loss.
        """
        self._beat()
        if self.job.learner.journaled and self.job.ranks is None:
            self.stop_if_asked()

    def _beat(self, loss: float | None = None) -> None:
        """Renew the lease and tell how far we are; without a loss, with the last one."""
        step, progress = self.step, self.job.progress
        if not self.job.leads:
            return
        self._last_loss = loss if loss is not None else self._last_loss
        self.job.claim.beat(
            {
                "step": step,
                "steps": self.total,
                "loss": self._last_loss,
                "forwards_per_second": progress.rate(),
                "eta_seconds": progress.eta(step),
                "metrics": self._evaluated,
                "first_step_seconds": self._startup,
            },
            force=loss is not None and not self._shown,
        )
        self._shown = self._shown or loss is not None

    def _checkpoint_if_due(self) -> None:
        minutes = self.job.settings["checkpoint_minutes"]
        early = time.monotonic() - self._saved < 60 * minutes
        if early or self.step >= self.total or not self.job.leads:
            return
        self._checkpoint()

    def stop_if_asked(self) -> None:
        """Save and leave, at the boundary between two steps and nowhere else."""
        if self.step >= self.total:
            return  # what is left after the last step is little, and its row holds the result
        reason = stop_asked()
        if self.job.ranks is not None and self.job.ranks.any(reason is not None):
            reason = reason or "a signal to another process"
        if reason is None:
            return
        if self.step != self._saved_step and self.job.leads:
            self._checkpoint()
        raise Preempted(f"stopped by {reason} after step {self.step} of {self.total}")

    def _agree_if_due(self) -> None:
        """Compare the weights of the processes; flushing them changes no trajectory."""
        ranks, every = self.job.ranks, self.job.settings["agree_every"]
        if ranks is not None and (self.step % every == 0 or self.step == self.total):
            self.job.learner.flush()
            agree(weights_hash(self.job.scorer.model), ranks, self.step)

    def _checkpoint(self) -> None:
        self.taken.read()  # nothing is saved that the journal does not hold
        self.job.learner.flush()
        self.job.claim.check()
        extra = {"step": self.step, "counters": asdict(self.job.counters)}
        self.job.checkpoints.save(self.job.scorer.model, self.job.learner.tensors(), extra)
        self._saved, self._saved_step = time.monotonic(), self.step
