"""Forwards recorded as graphs, with a stand-in for CUDA's: the callable and its fixed buffers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.test_lower import model_of
from tests.test_preempted_run import asks_at
from tests.test_resume import exact_rows, journal_text, prepare
from tests.test_shared import EXAMPLES
from zolab import process
from zolab.errors import UserError
from zolab.objectives import BatchLoss, CausalScorer, captured
from zolab.objectives.captured import CHECKED, Graphs
from zolab.run import run_dir

CELL = (
    "train.steps=14",
    "task.num_train=16",
    "train.eval_every=14",
    "train.log_every=1",
    "optimizer/placement=in_place",
)


class StandIn:
    """Replays run the recorded callable again, which reads nothing but its own buffers."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1

        def replay() -> Tensor:
            self.replays += 1
            return run()

        return replay


@pytest.fixture
def model() -> nn.Module:
    return model_of("opt")


def losses(model: nn.Module, graphs: Graphs | None, *sizes: int) -> list[float]:
    scorer = CausalScorer(model, pad_id=1)
    out = []
    for size in sizes:
        batch = scorer.batch(EXAMPLES[:size])
        out += BatchLoss(scorer, [batch], graphs=graphs)(1)
    return out


def test_a_run_is_that_of_plain_forwards_interrupted_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepare(tmp_path / "plain", *CELL)
    expected = run_dir(plain)
    stand_in = StandIn()
    monkeypatch.setattr(captured, "capture_of", lambda device: stand_in)
    folder = prepare(tmp_path / "captured", *CELL, "train.capture=true")
    asks_at(monkeypatch, {5})
    with process.stop_signals_caught(), pytest.raises(process.Preempted):
        run_dir(folder)
    got = run_dir(folder)
    assert stand_in.recorded > 1
    assert stand_in.replays > 4
    assert got["weights_hash"] == expected["weights_hash"]
    assert journal_text(folder) == journal_text(plain)
    assert exact_rows(folder) == exact_rows(plain)


def test_a_graph_reads_the_batch_and_the_weights_of_its_use(model: nn.Module) -> None:
    stand_in = StandIn()
    graphs = Graphs(stand_in, list(model.parameters()))
    scorer = CausalScorer(model, pad_id=1)
    first, other = scorer.batch(EXAMPLES), scorer.batch(EXAMPLES)
    other.input_ids = other.input_ids.roll(1, dims=0)
    for _ in range(2 + CHECKED):
        BatchLoss(scorer, [first], graphs=graphs)(1)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    before = stand_in.replays
    assert BatchLoss(scorer, [other], graphs=graphs)(1) == BatchLoss(scorer, [other])(1)
    assert stand_in.replays == before + 1
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert BatchLoss(scorer, [first], graphs=graphs)(1) == pytest.approx([torch.nan], nan_ok=True)
    assert graphs.stopped is None


def test_a_loss_that_is_no_number_passes_the_comparison(model: nn.Module) -> None:
    graphs = Graphs(StandIn(), list(model.parameters()))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    losses(model, graphs, *[2] * 4)
    assert graphs.stopped is None


def test_the_least_recently_used_graph_goes(model: nn.Module) -> None:
    stand_in = StandIn()
    graphs = Graphs(stand_in, list(model.parameters()), limit=2)
    losses(model, graphs, 1, 1, 2, 2, 1, 3, 3)  # 2 was used before 1
    assert (len(graphs.held), stand_in.recorded) == (2, 3)
    losses(model, graphs, 1, 3)
    assert stand_in.recorded == 3
    losses(model, graphs, 2)
    assert stand_in.recorded == 4


def test_weights_at_another_address_end_their_graphs(model: nn.Module) -> None:
    stand_in = StandIn()
    graphs = Graphs(stand_in, list(model.parameters()))
    losses(model, graphs, 2, 2, 2)
    weight = next(model.parameters())
    weight.data = weight.data.clone()
    losses(model, graphs, 2)
    assert stand_in.recorded == 2


def test_a_batch_that_the_host_steers_goes_the_plain_way_and_says_so_once(model: nn.Module) -> None:
    stand_in = StandIn()
    graphs = Graphs(stand_in, list(model.parameters()))
    batch = CausalScorer(model, pad_id=1).batch(EXAMPLES)
    batch.rows = EXAMPLES[0].rows
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            BatchLoss(CausalScorer(model, pad_id=1), [batch], graphs=graphs)(1)
    assert (len(told), stand_in.recorded) == (1, 0)


def broken(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def frozen(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    wrong = run() + 1.0
    return lambda: wrong


@pytest.mark.parametrize(
    ("capture", "why"),
    [(broken, "RuntimeError: operation not permitted"), (frozen, "gave other losses")],
)
def test_what_cannot_be_recorded_goes_the_plain_way_and_says_so_once(
    model: nn.Module, capture: Callable, why: str
) -> None:
    graphs = Graphs(capture, list(model.parameters()))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = losses(model, graphs, 2, 2, 2, 1, 1, 2)
    assert [why in str(w.message) for w in told if "train.capture" in str(w.message)] == [True]
    assert found == losses(model, None, 2, 2, 2, 1, 1, 2)
    assert not graphs.held


def test_a_model_that_is_not_on_cuda_goes_the_plain_way(model: nn.Module) -> None:
    with pytest.warns(RuntimeWarning, match="graphs are recorded on cuda, and the model is on cpu"):
        assert captured.graphs_for(model, "in_place", None) is None
    with pytest.warns(RuntimeWarning, match="placement is paired, expected in_place"):
        assert captured.graphs_for(model, "paired", None) is None


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("optimizer=adamw", "optimizer adamw has no forwards to record"),
        ("optimizer/placement=paired", "use optimizer/placement=in_place"),
    ],
)
def test_what_can_never_be_recorded_is_refused(tmp_path: Path, option: str, told: str) -> None:
    with pytest.raises(UserError, match=f"train.capture = true: .*{told}"):
        prepare(tmp_path, option, "train.capture=true")
