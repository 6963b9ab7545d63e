"""What the training loop asks of an optimizer, zeroth-order or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor

from zolab.objectives import Batch, BatchLoss, Encoded, Encoder, Scorer
from zolab.optim import MeZOSVRG, StepRecord, ZeroOrder
from zolab.optim.clock import Clock
from zolab.optim.late import Unread
from zolab.optim.placements import Placement
from zolab.tasks.base import Example


class Learner(Protocol):
    """One method of training.

    Attributes:
        trains: False for methods that only evaluate; the loop then takes no step.
        journaled: True when a step is a journal row; else a resume needs a checkpoint.
        param_groups: as torch optimizers have them; the loop sets "lr".
        last: record of the last step.
        num_steps: steps taken.
        facts: metrics of the method itself, by column name; logged with every evaluation.
        clock: where a step's time goes beside the model's own work; None: all of it is the update.
        waits_for: what needs the losses of a step at once; None where they may be late
            (`zolab.optim.late`), and `taken` is then the last step's record or `Unread`.
    """

    trains: bool
    journaled: bool
    param_groups: list[dict[str, Any]]
    last: StepRecord | None
    num_steps: int
    facts: dict[str, float]
    clock: Clock | None
    waits_for: str | None

    def prompts(
        self, splits: dict[str, list[Example]], encoder: Encoder
    ) -> dict[str, list[Example]]:
        """What the model is to read of each split's examples."""

    def reader(self, scorer: Scorer, train: Sequence[Encoded], batch_size: int) -> Scorer | Reader:
        """What evaluations take scores from."""

    def step(self, closure: BatchLoss) -> float:
        """One step on one mini-batch; the loss to report."""

    def flush(self) -> None:
        """Make the weights clean."""

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        """Batches of the whole training set, for methods that look at all of it."""

    def tensors(self) -> dict[str, Tensor]:
        """State to save beside the weights."""

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take back what `tensors` gave after `step` steps."""


class Reader:
    """A scorer whose scores are turned into others; all else is the scorer's own.

    Args:
        scorer: of the model.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def scores(self, batch: Batch, copies: int = 1) -> Tensor:
        """As `Scorer.scores`: float32 (copies, examples, width)."""
        raise NotImplementedError


class Plain:
    """What most methods leave as it is."""

    journaled = False
    facts: dict[str, float]
    clock: Clock | None = None
    waits_for: str | None = "the optimizer"

    def prompts(
        self, splits: dict[str, list[Example]], encoder: Encoder
    ) -> dict[str, list[Example]]:
        """The examples themselves."""
        return splits

    def reader(self, scorer: Scorer, train: Sequence[Encoded], batch_size: int) -> Scorer | Reader:
        """The model's own scores."""
        return scorer

    def flush(self) -> None:
        """Weights are always clean."""

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        """Not needed: a step sees its own batch only."""

    def tensors(self) -> dict[str, Tensor]:
        """No state."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        """Nothing to load."""


class ZerothOrderLearner(Plain):
    """A `ZeroOrder` optimizer as the loop sees it."""

    trains = True
    journaled = True

    def __init__(self, optimizer: ZeroOrder) -> None:
        self.facts = {}
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.clock = optimizer.engine.clock

    @property
    def placement(self) -> Placement:
        """Where the weights are."""
        return self.optimizer.placement

    @property
    def last(self) -> StepRecord | None:
        return self.optimizer.last

    @property
    def taken(self) -> StepRecord | Unread | None:
        """The same, its numbers perhaps still on their device."""
        return self.optimizer.taken

    @property
    def waits_for(self) -> str | None:
        return self.optimizer.waits_for

    @property
    def num_steps(self) -> int:
        return self.optimizer.num_steps

    def step(self, closure: BatchLoss) -> float:
        return self.optimizer.step(closure)

    def flush(self) -> None:
        self.optimizer.flush()

    def offer_data(self, batches: Callable[[], Iterable[BatchLoss]]) -> None:
        if isinstance(self.optimizer, MeZOSVRG):
            self.optimizer.full_batch = batches

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def load_tensors(self, tensors: dict[str, Tensor], step: int) -> None:
        self.optimizer.load_tensors(tensors, step)
