"""Answers in free text: everything comes from the YAML."""

from __future__ import annotations

from typing import Any

from zolab.config import forms, templates
from zolab.data import Row
from zolab.errors import UserError
from zolab.tasks.base import Example, Task


class Generation(Task):
    """`template` filled with a row's fields; the model goes on until the end of the line.

    Trained on the first gold answer's tokens, judged by token F1 against the best of them (MeZO,
    arXiv 2305.17333, appendix E).

    Args:
        template: prompt with the row's fields in braces.
        answers_column: field with one or more gold texts; `answers.text` is `text` in `answers`.
        answer: how the answer trained on follows the prompt, with `{answer}` in it.
        max_new_tokens: longest answer in tokens.
        maps: field -> what the data says -> what the prompt says.
        options: as `Task`.
    """

    metric = "f1"
    objective = "lm"

    def __init__(
        self,
        name: str,
        path: str | None,
        template: str,
        answers_column: str,
        answer: str = " {answer}\n",
        max_new_tokens: int = 50,
        maps: dict[str, dict[str, str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, path, **options)
        self.template, self.answer, self.answers_column = template, answer, answers_column
        self.max_new_tokens = max_new_tokens
        try:
            self.form = forms.generation(template, answers_column, maps)
        except ValueError as error:
            raise UserError(f"task.template = {template!r}: {error}") from error

    def example(self, row: Row) -> Example:
        golds = row.fields[self.answers_column]
        answer = templates.render(self.answer, {"answer": golds[0]})
        prompt = templates.render(self.template, row.fields)
        return Example(prompt, (answer,), 0, answers=tuple(golds))
