"""Examples made by a user's own function."""

from __future__ import annotations

import importlib
import json
from typing import Any

from zolab.config import forms
from zolab.data import Row
from zolab.errors import UserError, first_line
from zolab.tasks.base import Example, Task


class Python(Task):
    """`function(row)` makes the example of a row.

    Args:
        function: dotted path of a function from a row (a dict, as the data file has it) to an
            `Example`; checked against `trusted_targets` while planning.
        objective: "options" or "lm", see `Task`.
        options: as `Task`.
    """

    def __init__(
        self, name: str, path: str | None, function: str, objective: str = "options", **options: Any
    ) -> None:
        super().__init__(name, path, **options)
        self.objective = objective
        self.form = forms.python()
        module, _, attribute = function.rpartition(".")
        try:
            self._function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"task.function = {function!r}: {first_line(error)}") from error

    def example(self, row: Row) -> Example:
        try:
            example = self._function(json.loads(row.fields["row"]))
        except (KeyError, TypeError, ValueError) as error:
            row.fail(f"task.function: {type(error).__name__}: {first_line(error)}")
        if not isinstance(example, Example):
            row.fail(f"task.function gave {type(example).__name__}: expected a zolab.tasks.Example")
        if not 0 <= example.label < len(example.candidates):
            row.fail(f"task.function: label {example.label} of {len(example.candidates)} answers")
        return example
