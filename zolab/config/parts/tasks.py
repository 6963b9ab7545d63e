"""What is trained on, chosen by `kind`."""

# `option` and `section` return dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zolab.config.fields import option, section

_SINCE = "0.2"


@dataclass
class Hub:
    """A data set of the Hugging Face hub; read where `task.path` is null."""

    name: str | None = option(None, help="hub name such as nyu-mll/glue")
    config: str | None = option(None, help="configuration of it, such as sst2")
    revision: str | None = option(None, help="commit, tag or branch")
    train: str = option("train", help="split that training rows (and dev rows) come from")
    dev: str | None = option(None, help="split of dev rows; null: cut from the training split")
    test: str = option("validation", help="split that test rows come from")
    unlabeled: int | None = option(None, help="label of rows to leave out, such as -1")


@dataclass
class Masked:
    """How a masked model is asked."""

    template: str | None = option(
        None, help="text with {mask} once; null: the task's template, then {mask}"
    )
    label_words: list[str] | None = option(
        None, help="answers there, one token each; null: task.label_words"
    )
    max_length: int | None = option(
        None, min=4, help="longest text in tokens; null: what the model can take"
    )
    field: str | None = option(None, help="field that is shortened first")
    field_length: int | None = option(
        None, min=1, help="tokens that `field` keeps, from its beginning; null: all"
    )


@dataclass(kw_only=True)
class _Data:
    """What all tasks share: where the rows come from and how many are used."""

    name: str = option(help="task name in tables", label=True)
    path: str | None = option(
        None, help="embedded name, or a folder with train.jsonl and test.jsonl; null: from the hub"
    )
    hub: Any = section(Hub, help="where on the hub the rows are", since=_SINCE)
    num_train: int = option(1000, min=1, help="training rows used, at most")
    num_dev: int = option(500, min=1, help="dev rows used, at most")
    num_test: int = option(1000, min=1, help="test rows used, at most")
    split_seed: int = option(0, min=0, help="seed of the rows drawn", since=_SINCE)
    max_length: int | None = option(
        None, min=2, help="longest prompt in tokens; null: what the model can take"
    )


@dataclass(kw_only=True)
class _Template(_Data):
    template: str = option(help="prompt with the row's fields in braces, such as {sentence}")
    maps: dict[str, Any] = option(
        {}, help="field -> what the data says -> what the prompt says", since=_SINCE
    )


@dataclass(kw_only=True)
class _Labels(_Template):
    label_column: str = option("label", help="field that holds the label")
    label_values: list[Any] | None = option(
        None, help="what that field holds for label 0, 1, ...; null: the number", since=_SINCE
    )


@dataclass(kw_only=True)
class Classification(_Labels):
    """One text, one label word: the prompt is the template, the answer one of the label words."""

    label_words: list[str] = option(help="answer of label 0, 1, ...")
    masked: Any = section(Masked, help="how a masked model is asked", since=_SINCE)
    k: int | None = option(
        None,
        min=1,
        help="rows per label in train and again in dev; null: num_train and num_dev rows",
        since=_SINCE,
    )


@dataclass(kw_only=True)
class MultipleChoice(_Labels):
    """Each row brings its own answers; the right one is trained on, the best one is chosen."""

    choices: list[str] = option(help="answers with the row's fields in braces, as they follow")
    choices_column: str | None = option(
        None, help="field with a list of answers, each put for {choice} in the one entry of choices"
    )


@dataclass(kw_only=True)
class Generation(_Template):
    """Free text, decoded greedily and compared with the gold answers by token F1."""

    answers_column: str = option(help="field with one or more gold texts, such as answers.text")
    answer: str = option(" {answer}\n", help="how the first of them follows the prompt")
    max_new_tokens: int = option(50, min=1, help="longest answer in tokens")


@dataclass(kw_only=True)
class Record(_Data):
    """ReCoRD: which entity of the passage stands in the query's gap."""


@dataclass(kw_only=True)
class Python(_Data):
    """Your own function makes the example of a row."""

    function: str = option(
        help="dotted path of a function from a row to a zolab.tasks.Example, in trusted_targets"
    )
    objective: str = option(
        "options", choices=("options", "lm"), help="what train.objective=auto minimises"
    )
