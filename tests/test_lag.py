"""Runs that read losses some steps late: the same run, with a journal that lags as much."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from torch import Tensor

from tests.test_preempted_run import asks_at
from tests.test_resume import exact_rows, journal_text, prepare
from zolab import process
from zolab.errors import UserError
from zolab.journal import Journal
from zolab.objectives import BatchLoss
from zolab.optim import ZeroOrder
from zolab.optim.late import Late
from zolab.run import run_dir


@pytest.mark.parametrize(
    "cell",
    [
        ("optimizer/placement=in_place",),
        ("optimizer/placement=paired", "sparsity=small_weights", "train.micro_batch_size=3"),
    ],
)
def test_a_run_is_that_of_losses_read_at_once_interrupted_or_not(
    cell: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepare(tmp_path / "plain", *cell)
    expected = run_dir(plain)
    folder = prepare(tmp_path / "late", *cell, "train.lag=2")
    assert folder.name == plain.name
    asks_at(monkeypatch, {5})
    with process.stop_signals_caught(), pytest.raises(process.Preempted, match="after step"):
        run_dir(folder)
    got = run_dir(folder)
    assert got["weights_hash"] == expected["weights_hash"]
    assert journal_text(folder) == journal_text(plain)
    assert exact_rows(folder) == exact_rows(plain)


def test_a_loss_is_read_when_later_steps_are_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps begun and rows written, in order; a row of metrics at step 4 reads all before it."""
    seen: list[tuple[str, int]] = []
    take, append = ZeroOrder.step, Journal.append

    def step(self: ZeroOrder, closure: BatchLoss) -> float | Late:
        out = take(self, closure)
        seen.append(("taken", self.num_steps))
        return out

    def write(self: Journal, record: object) -> None:
        seen.append(("read", record.step))
        append(self, record)

    monkeypatch.setattr(ZeroOrder, "step", step)
    monkeypatch.setattr(Journal, "append", write)
    monkeypatch.setattr(Late, "__float__", lambda self: pytest.fail("the host waited"))
    options = ("train.lag=1", "train.steps=6", "train.log_every=4", "train.eval_every=6")
    # Plain torch: native kernels take their coefficients from the host.
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    run_dir(prepare(tmp_path, *options, "optimizer/placement=in_place"))
    order = "t1 t2 r1 t3 r2 t4 r3 r4 t5 t6 r5 r6"
    assert " ".join(f"{what[0]}{number}" for what, number in seen) == order


def test_losses_that_are_not_finite_stop_a_run_as_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = BatchLoss._terms

    def broken(self: BatchLoss, *args: object) -> Tensor:
        return terms(self, *args) * (float("nan") if self.late else 1.0)

    monkeypatch.setattr(BatchLoss, "_terms", broken)
    folder = prepare(tmp_path, "train.lag=1", "train.max_nonfinite=3")
    with pytest.raises(UserError, match=r"max_nonfinite = 3: .* the last at step 3"):
        run_dir(folder)


@pytest.mark.parametrize(
    ("cell", "why"), [("optimizer=mezo_momentum", "Momentum"), ("optimizer=adamw", "the optimizer")]
)
def test_what_needs_losses_at_once_is_told_once(cell: str, why: str, tmp_path: Path) -> None:
    folder = prepare(tmp_path, cell, "train.lag=1", "train.steps=3", "train.eval_every=3")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run_dir(folder)
    messages = [str(one.message) for one in told if "train.lag" in str(one.message)]
    assert messages == [
        f"train.lag = 1: losses are read in their own step, since {why} needs them there"
    ]
