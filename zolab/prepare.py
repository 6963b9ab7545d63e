"""From a checked cell to examples, their tokens, a scorer and an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from zolab.config.forms import MASKED, protocol_of
from zolab.errors import UserError
from zolab.models.load import DTYPES, LoadedModel
from zolab.objectives import (
    ACCURACY,
    LIKELIHOODS,
    CausalScorer,
    Encoded,
    Encoder,
    Generator,
    MaskedEncoder,
    MaskedScorer,
    NegativeF1,
    Objective,
    Scorer,
)
from zolab.progress import Progress
from zolab.tasks import Example, Task, build_task

#: From the examples of each split and the encoder to what the model is to read.
Prompts = Callable[[dict[str, list[Example]], Any], dict[str, list[Example]]]


@dataclass(frozen=True)
class Study:
    """What a model is trained and judged on.

    Attributes:
        task: as built.
        scorer: the model as a scorer of candidates.
        encoder: turns examples into tokens.
        splits: encoded examples of train, dev and test.
        objective: what is minimised.
        likelihood: what `dev/loss` and `test/loss` are.
        generator: decodes answers; None where candidates are compared.
        limit: longest row in tokens.
    """

    task: Task
    scorer: Scorer
    encoder: Encoder | MaskedEncoder
    objective: Objective
    likelihood: Objective
    generator: Generator | None
    limit: int
    splits: dict[str, list[Encoded]] = field(default_factory=dict)


def task_of(cell: dict[str, Any]) -> Task:
    """The task of a checked cell, asked as its kind of model is."""
    return build_task(cell["task"], protocol_of(cell))


def study_of(
    cell: dict[str, Any],
    task: Task,
    examples: dict[str, list[Example]],
    loaded: LoadedModel,
    prompts: Prompts | None = None,
) -> Study:
    """Encode the examples for a model and choose how it is scored.

    Args:
        cell: checked config.
        task: of the cell.
        examples: what `task.load` gave.
        loaded: model and tokenizer of the cell.
        prompts: what the method makes of the examples, see `Learner.prompts`; None: as they are.

    Raises:
        UserError: an example does not fit the model or its tokenizer, or a split is empty.
    """
    limit = min(task.max_length or loaded.max_length, loaded.max_length)
    tokenizer, masked = loaded.tokenizer, protocol_of(cell) == MASKED
    if masked:
        encoder: Encoder | MaskedEncoder = MaskedEncoder(tokenizer, limit, task.field_length)
    else:
        encoder = Encoder(tokenizer, limit, task.max_new_tokens)
    scorer = (MaskedScorer if masked else CausalScorer)(
        loaded.model,
        tokenizer.pad_token_id,
        DTYPES.get(cell["model"]["autocast"]),
        loaded.max_length,
    )
    generator = Generator(tokenizer, task.max_new_tokens) if task.max_new_tokens else None
    name = cell["train"]["objective"]
    name = task.objective if name == "auto" else name
    likelihood = LIKELIHOODS.get(name, LIKELIHOODS[task.objective])
    objective = likelihood if name in LIKELIHOODS else _metric_objective(name, generator)
    if prompts is not None:
        examples = prompts(examples, encoder)
    study = Study(task, scorer, encoder, objective, likelihood, generator, limit)
    for split, rows in examples.items():
        if split == "train" and objective.label_only:
            rows = [example.only_label() for example in rows]
        study.splits[split] = _encode(encoder, split, rows)
    return study


def keep_states(
    cell: dict[str, Any], study: Study, trained: Iterable[nn.Parameter], progress: Progress
) -> None:
    """Let what never moves pass the rows of train, and of dev if they fit too, only once.

    Raises:
        UserError: the model has no layers below what trains, or the training rows do not fit.
    """
    limit = cell["train"]["keep_lower_gb"]
    if not limit:
        return
    splits = [study.splits["train"], study.splits["dev"]]
    states, number = study.scorer.keep(trained, splits, limit * 1e9)
    begin = f"train.keep_lower_gb = {limit:g}: "
    if not states.start:
        raise UserError(
            f"{begin}{type(study.scorer.model).__name__} has no layer below all that trains, or is "
            "of no family known to hand its rows from layer to layer; set it to 0"
        )
    if not number:
        raise UserError(
            f"{begin}the {len(splits[0])} training examples need {states.num_wanted / 1e9:.3g}; "
            "allow as much, or set it to 0"
        )
    progress.say(
        f"kept over epochs: {states.num_bytes / 1e9:.2g} GB of what the lowest {states.start} "
        f"layers make of {' and '.join(('train', 'dev')[:number])}"
    )


def _metric_objective(name: str, generator: Generator | None) -> Objective:
    return ACCURACY if name == ACCURACY.name else NegativeF1(generator)


def _encode(encoder: Encoder | MaskedEncoder, split: str, rows: list[Example]) -> list[Encoded]:
    if not rows:
        raise UserError(f"task: the {split} split is empty")
    return encoder(rows)
