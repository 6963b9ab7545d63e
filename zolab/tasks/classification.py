"""Text classification by label words: everything comes from the YAML."""

from __future__ import annotations

from zolab.config.rows import form_of
from zolab.data import Row
from zolab.errors import UserError
from zolab.tasks.base import Example, Task


class Classification(Task):
    """`template` filled with a row's fields, answered by one of `label_words`.

    Args:
        template: prompt with the row's fields in braces.
        label_words: answer of label 0, 1, ...; two at least, all different.
        label_column: field that holds the label, an integer below the number of words.
        options: as `Task`.
    """

    def __init__(
        self,
        name: str,
        path: str,
        template: str,
        label_words: list[str],
        label_column: str = "label",
        **options,
    ) -> None:
        super().__init__(name, path, **options)
        if len(label_words) < 2 or len(set(label_words)) < len(label_words):
            raise UserError(
                f"task.label_words = {label_words}: expected two or more different words"
            )
        self.template = template
        self.label_words = tuple(label_words)
        try:
            self.form = form_of(template, label_column, len(self.label_words))
        except ValueError as error:
            raise UserError(f"task.template = {template!r}: {error}") from error

    def example(self, row: Row) -> Example:
        fault = self.form.fault(row.fields)
        if fault:
            row.fail(fault)
        values = {name: str(row.fields[name]).strip() for name in self.form.fields}
        label = row.fields[self.form.label_column]
        return Example(self.template.format(**values), self.label_words, label)
