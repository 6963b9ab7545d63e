"""Text classification by label words: everything comes from the YAML."""

from __future__ import annotations

from typing import Any

from zolab.config import forms, templates
from zolab.config.forms import MASKED
from zolab.data import Row
from zolab.errors import UserError
from zolab.tasks.base import Example, Task


class Classification(Task):
    """`template` filled with a row's fields, answered by one of `label_words`.

    Args:
        template: prompt with the row's fields in braces, see `zolab.config.templates`.
        label_words: answer of label 0, 1, ...; two at least, all different.
        label_column: field that holds the label.
        label_values: what that field holds for label 0, 1, ...; None: the number itself.
        maps: field -> what the data says -> what the prompt says.
        masked: `task.masked` section of a checked config: template and label words under a mask.
        options: as `Task`.
    """

    def __init__(
        self,
        name: str,
        path: str | None,
        template: str,
        label_words: list[str],
        label_column: str = "label",
        label_values: list[Any] | None = None,
        maps: dict[str, dict[str, str]] | None = None,
        masked: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, path, **options)
        masked = masked or {}
        under_mask = self.protocol == MASKED
        words = (under_mask and masked.get("label_words")) or label_words
        if len(words) < 2 or len(set(words)) < len(words):
            raise UserError(f"task.label_words = {words}: expected two or more different words")
        self.label_words = tuple(words)
        self.label_column = label_column
        try:
            self.form = forms.classification(
                template, label_column, len(words), label_values, masked.get("template"), maps,
                self.protocol,
            )  # fmt: skip
            self._before, self._behind = template, ""
            if under_mask:
                whole = forms.mask_template(template, masked.get("template"))
                self._before, self._behind = templates.split_at_mask(whole)
        except ValueError as error:
            raise UserError(f"task.template = {template!r}: {error}") from error
        if under_mask:
            self.max_length = masked.get("max_length") or self.max_length
            self.field_length = masked.get("field_length")
        self._field = masked.get("field") if self.field_length else None

    def example(self, row: Row) -> Example:
        field = ""
        if self._field is not None:
            field = templates.filled(self._before + self._behind, self._field, row.fields)
        return Example(
            templates.render(self._before, row.fields),
            self.label_words,
            row.fields[self.label_column],
            suffix=templates.render(self._behind, row.fields),
            field=field,
        )
