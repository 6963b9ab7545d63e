"""Text classification by label words: everything comes from the YAML."""

from __future__ import annotations

import string

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
        self.label_column = label_column
        try:
            self.columns = [f for _, f, _, _ in string.Formatter().parse(template) if f]
        except ValueError as error:
            raise UserError(f"task.template = {template!r}: {error}") from error

    def example(self, row: Row) -> Example:
        missing = [name for name in (*self.columns, self.label_column) if name not in row.fields]
        if missing:
            row.fail(f"no field {missing[0]!r}; the row has {', '.join(sorted(row.fields))}")
        label = row.fields[self.label_column]
        if not isinstance(label, int) or isinstance(label, bool):
            row.fail(f"{self.label_column} = {label!r}: expected an integer")
        if not 0 <= label < len(self.label_words):
            row.fail(
                f"{self.label_column} = {label}: outside the task's range 0 to "
                f"{len(self.label_words) - 1}"
            )
        values = {name: str(row.fields[name]).strip() for name in self.columns}
        return Example(self.template.format(**values), self.label_words, label)
