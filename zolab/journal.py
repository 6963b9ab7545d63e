"""The journal: a few scalars a step from which the weights of any step can be rebuilt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zolab.config.identity import identity
from zolab.errors import UserError
from zolab.ledger import read_json
from zolab.optim import NUMERICS, StepRecord, ZeroOrder
from zolab.tracking.local import JsonLines, read_rows


class JournalRow(NamedTuple):
    """One step as the journal holds it.

    Attributes:
        step: from 1.
        lr: learning rate of the first parameter group.
        coefficients: per probe, exactly what the update used; None for a skipped step.
        losses: in the order evaluated.
        loss: what the method reports; the mean of the losses for most methods.
        num_forwards: forward passes; one a loss for most methods.
        extra: what else the method decided by value; None for most methods.
    """

    step: int
    lr: float
    coefficients: tuple[float, ...] | None
    losses: tuple[float, ...]
    loss: float
    num_forwards: int
    extra: dict[str, Any] | None = None

    @classmethod
    def of(cls, record: StepRecord) -> JournalRow:
        return cls(
            record.step,
            record.lr,
            record.coefficients,
            record.losses,
            record.loss,
            record.num_forwards,
            record.extra,
        )

    def to_json(self) -> dict[str, Any]:
        """Short keys: a plain two-sided row stays within 100 bytes."""
        c = None if self.coefficients is None else list(self.coefficients)
        row = {"s": self.step, "lr": self.lr, "c": c, "l": list(self.losses)}
        if repr(self.loss) != repr(_mean(self.losses)):  # repr: NaN counts as equal to itself
            row["m"] = self.loss
        if self.num_forwards != len(self.losses):
            row["n"] = self.num_forwards
        return row if self.extra is None else {**row, "x": self.extra}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> JournalRow:
        c, losses = row["c"], tuple(row["l"])
        return cls(
            row["s"],
            row["lr"],
            None if c is None else tuple(c),
            losses,
            row.get("m", _mean(losses)),
            row.get("n", len(losses)),
            row.get("x"),
        )


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


def _plain_line(record: StepRecord) -> str | None:
    """The row of a step of finite numbers that needs no further key, as json would write it.

    Between two steps the caches hold the model's weights: what a step of a small model spends on
    its journal is mostly the Python of it.
    """
    losses, c = record.losses, record.coefficients
    if c is None or record.extra is not None or record.num_forwards != len(losses):
        return None
    if record.loss == 0.0 or record.loss != _mean(losses):
        return None
    numbers = (
        f'"lr":{record.lr!r},"c":[{",".join(map(repr, c))}],"l":[{",".join(map(repr, losses))}]'
    )
    # "nan", "inf" and "np.float64(…)" are no JSON; all other numbers are as json writes them.
    return None if "n" in numbers else f'{{"s":{record.step},{numbers}}}'


class Journal:
    """The rows of one attempt, `attempts/<n>/journal.jsonl`."""

    def __init__(self, attempt_dir: Path) -> None:
        self._lines = JsonLines(attempt_dir / "journal.jsonl")

    def append(self, record: StepRecord) -> None:
        """Write one step; UserError when the disk is full."""
        line = _plain_line(record)
        if line is None:
            self._lines.write(JournalRow.of(record).to_json())
        else:
            self._lines.write_line(line)

    def close(self) -> None:
        self._lines.close()


def read_journal(run_dir: Path) -> list[JournalRow]:
    """All steps of a run in order, segments of all attempts chained.

    A later attempt knew what it continued from, so from its first step on its rows count and what
    an earlier attempt wrote beyond that (a process that did not know it had been replaced) is
    dropped. A gap ends the chain. What lay beyond a checkpoint when other numerics took over
    (`continue_under`) is dropped too.
    """
    rows: list[JournalRow] = []
    continued = read_json(run_dir / "header.json").get("continued", [])
    cuts = {entry["attempt"]: entry["step"] for entry in continued}
    attempts = run_dir / "attempts"
    numbers = sorted(int(p.name) for p in attempts.glob("*") if p.name.isdigit())
    for number in numbers:
        rows = rows[: cuts.get(number)]
        segment = [
            JournalRow.from_json(r) for r in read_rows(attempts / str(number) / "journal.jsonl")
        ]
        if segment and segment[0].step <= len(rows) + 1:
            rows = rows[: segment[0].step - 1]
            for row in segment:
                if row.step != len(rows) + 1:
                    break
                rows.append(row)
    return rows


def replay(optimizer: ZeroOrder, rows: Sequence[JournalRow]) -> None:
    """Repeat the steps of `rows` that come after the optimizer's last one; weights end clean."""
    for row in rows:
        if row.step > optimizer.num_steps:
            optimizer.replay(row.step, row.lr, row.coefficients, row.extra, row.losses)
    optimizer.flush()


def make_header(
    cell: dict[str, Any], base: dict[str, Any], init: str | None, optimizer: ZeroOrder | None
) -> dict[str, Any]:
    """What a resume or a replay must find unchanged.

    Args:
        cell: resolved config.
        base: hashes of the model and data files the run reads.
        init: hash of init.safetensors, None where all weights come from the base.
        optimizer: at step 0; None for methods without a journal.
    """
    named = identity(cell)  # as the run id sees them: without keys that came later, at default
    header = {
        "base": base,
        "init": init,
        "steps": cell["train"]["steps"],
        "seed": cell["seed"],
        "optimizer": named["optimizer"],
        "sparsity": named["sparsity"],
    }
    if "tuning" in named["model"]:
        header["tuning"] = named["model"]["tuning"]
    if optimizer is None:
        return header
    return header | {
        "numerics": NUMERICS,
        "placement": optimizer.placement.name,
        "noise": optimizer.direction.noise.kind,
        "eps": [group["eps"] for group in optimizer.param_groups],
        "mask": optimizer.mask.state(),
        "parameters": [
            [info.name, info.pid, list(info.param.shape), str(info.param.dtype).split(".")[1]]
            for info in optimizer.infos
        ],
    }


def continue_under(
    header: dict[str, Any], rows: Sequence[JournalRow], saved: int, attempt: int
) -> dict[str, Any] | None:
    """What a header becomes if this code cannot replay what was taken since a checkpoint.

    Rows that other numerics took do not give the same bits here: the run goes on from the weights
    of a checkpoint, or from the start, and steps after that are taken again.

    Args:
        header: of the run, with its `numerics` and the continuations so far.
        rows: its journal.
        saved: step of the newest checkpoint among the rows; 0 if there is none.
        attempt: number of the attempt that goes on.

    Returns:
        The header with one more continuation; None if all rows after `saved` can be replayed.
    """
    earlier = header.get("continued", [])
    last = [{"step": 0, "numerics": header["numerics"]}, *earlier][-1]
    if last["numerics"] == NUMERICS and saved >= last["step"]:
        return None
    if not rows:
        return {**header, "numerics": NUMERICS, "continued": []}
    kept = [entry for entry in earlier if entry["step"] < saved]
    return {
        **header,
        "continued": [*kept, {"step": saved, "numerics": NUMERICS, "attempt": attempt}],
    }


def check_replayable(name: str, header: dict[str, Any], step: int) -> None:
    """Refuse to replay steps that other numerics took; UserError that says how far it goes."""
    if header.get("numerics") != NUMERICS:
        raise UserError(
            f"{name} began with numerics {header.get('numerics')} (header.json), this is "
            f"{NUMERICS}: it can be continued, but only replayed with those"
        )
    end = min((entry["step"] for entry in header.get("continued", [])), default=step)
    if step > end:
        raise UserError(
            f"--step {step}: {name} was continued under other numerics after step {end}, the last "
            "one that can be replayed"
        )


def header_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which two headers differ, as they look after a round trip through JSON.

    Numerics may differ: see `continue_under` and `check_replayable`.
    """
    new = json.loads(json.dumps(new))
    compared = {*old, *new} - {"numerics", "continued"}
    return [key for key in sorted(compared) if old.get(key) != new.get(key)]
