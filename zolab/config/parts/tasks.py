"""What is trained on, chosen by `kind`."""

# `option` returns dataclasses.field(): the call is the declaration.
# ruff: noqa: RUF009

from __future__ import annotations

from dataclasses import dataclass

from zolab.config.fields import option


@dataclass
class Classification:
    """One text, one label word: the prompt is the template, the answer one of the label words."""

    name: str = option(help="task name in tables", label=True)
    path: str = option(help="embedded name, or a folder with train.jsonl and test.jsonl")
    template: str = option(help="prompt with the row's fields in braces, such as {sentence}")
    label_words: list[str] = option(help="answer of label 0, 1, ...")
    label_column: str = option("label", help="field that holds the label")
    num_train: int = option(1000, min=1, help="training rows used, at most")
    num_dev: int = option(500, min=1, help="dev rows used, at most")
    num_test: int = option(1000, min=1, help="test rows used, at most")
    max_length: int | None = option(
        None, min=2, help="longest prompt in tokens; null: what the model can take"
    )
