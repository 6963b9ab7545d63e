"""Everything one attempt at a run consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zolab.checkpoint import Checkpoints
from zolab.journal import Journal, JournalRow
from zolab.learner import Learner
from zolab.ledger import Claim
from zolab.memory import PeakMemory
from zolab.objectives import Encoded, Scorer
from zolab.parallel import Ranks
from zolab.prepare import Study
from zolab.progress import Progress
from zolab.tally import Counters, Metrics
from zolab.watch import Watch


@dataclass
class Job:
    """Everything a run needs, built and resumed; see `zolab.run`.

    Attributes:
        study: examples in tokens, scorer and objective.
        settings: the `train` section of the config.
        records: journal rows of the steps already taken.
        attempt: number of this attempt, from 1.
        ranks: the processes of this cell; None if there is one. Only the first one, which leads,
            holds the claim and writes; the others take the same steps.
        data: sizes and fingerprint of the splits, for the record.
        watch: looks at the health of the run; None in processes that do not write.
        model: how much of the model trains, and its commit, for the record.
    """

    run_dir: Path
    seed: int
    settings: dict[str, Any]
    learner: Learner
    study: Study
    claim: Claim
    metrics: Metrics
    journal: Journal | None
    checkpoints: Checkpoints
    progress: Progress
    memory: PeakMemory
    attempt: int
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    records: list[JournalRow] = field(default_factory=list)
    ranks: Ranks | None = None
    counters: Counters = field(default_factory=Counters)
    watch: Watch | None = None

    @property
    def scorer(self) -> Scorer:
        """The model as a scorer of candidates."""
        return self.study.scorer

    @property
    def splits(self) -> dict[str, list[Encoded]]:
        """Encoded examples of train, dev and test."""
        return self.study.splits

    @property
    def leads(self) -> bool:
        """Whether this process writes; of several, the first one."""
        return self.ranks is None or self.ranks.leads

    def close(self, exit_code: int) -> None:
        """Close every file of the attempt; the mirror is told how it ended."""
        self.progress.close()
        self.memory.close()
        if self.journal is not None:
            self.journal.close()
        self.metrics.close(exit_code)
