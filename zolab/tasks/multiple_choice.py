"""Rows that bring their own answers: everything comes from the YAML."""

from __future__ import annotations

from typing import Any

from zolab.config import forms, templates
from zolab.data import Row
from zolab.errors import UserError
from zolab.tasks.base import Example, Task


class MultipleChoice(Task):
    """`template` filled with a row's fields, followed by one of the row's answers.

    Trained on the right answer's tokens alone (MeZO, arXiv 2305.17333, appendix E).

    Args:
        template: prompt with the row's fields in braces.
        choices: each answer as it follows the prompt, with fields in braces; with
            `choices_column` one text with `{choice}` in it.
        choices_column: field with a list of answers.
        label_column: field that holds the number of the right one.
        label_values: what that field holds for answer 0, 1, ...; None: the number itself.
        maps: field -> what the data says -> what the prompt says.
        options: as `Task`.
    """

    objective = "lm"

    def __init__(
        self,
        name: str,
        path: str | None,
        template: str,
        choices: list[str],
        choices_column: str | None = None,
        label_column: str = "label",
        label_values: list[Any] | None = None,
        maps: dict[str, dict[str, str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, path, **options)
        self.template, self.choices = template, tuple(choices)
        self.choices_column, self.label_column = choices_column, label_column
        try:
            self.form = forms.multiple_choice(
                template, choices, choices_column, label_column, label_values, maps
            )
        except ValueError as error:
            raise UserError(f"task.template = {template!r}: {error}") from error

    def example(self, row: Row) -> Example:
        values = [row.fields]
        templates_of = self.choices
        if self.choices_column is not None:
            values = [
                {**row.fields, forms.CHOICE: text} for text in row.fields[self.choices_column]
            ]
            templates_of = self.choices * len(values)
        else:
            values = values * len(self.choices)
        texts = [templates.render(t, v) for t, v in zip(templates_of, values, strict=True)]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            row.fail(f"expected two or more different answers, got {texts}")
        prompt = templates.render(self.template, row.fields)
        return Example(prompt, tuple(texts), row.fields[self.label_column])
