"""What each kind of task uses of a row, from its settings alone. Standard library only.

Planning looks rows over with these, and the tasks read with the same ones, so both refuse a row in
the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zolab.config import templates
from zolab.config.rows import RowForm

#: Kinds of models, and with them of prompts.
CAUSAL, MASKED = "causal", "masked"


def mask_template(template: str, masked: str | None) -> str:
    """The template under a mask; by default the mask follows the prompt, as the answer would."""
    if masked is not None:
        return masked
    space = "" if template[-1:].isspace() else " "
    return f"{template}{space}{{{templates.MASK}}}"


def classification(
    template: str,
    label_column: str = "label",
    num_labels: int = 2,
    label_values: Sequence[Any] | None = None,
    masked_template: str | None = None,
    maps: dict[str, dict[str, str]] | None = None,
    protocol: str = CAUSAL,
) -> RowForm:
    """Form of a classification row; ValueError if a template cannot be read."""
    if protocol == MASKED:
        template = "".join(templates.split_at_mask(mask_template(template, masked_template)))
    values = None if label_values is None else tuple(map(str, label_values))
    return RowForm(
        templates.fields(template), label_column, num_labels, values=values, maps=_pairs(maps)
    )


def multiple_choice(
    template: str,
    choices: Sequence[str],
    choices_column: str | None = None,
    label_column: str = "label",
    label_values: Sequence[Any] | None = None,
    maps: dict[str, dict[str, str]] | None = None,
) -> RowForm:
    """Form of a row with its own answers: in columns of their own, or all in one list."""
    values = None if label_values is None else tuple(map(str, label_values))
    if choices_column is None:
        names = templates.fields(template, *choices)
        return RowForm(names, label_column, len(choices), values=values, maps=_pairs(maps))
    names = tuple(n for n in templates.fields(template, *choices) if n != CHOICE)
    return RowForm(
        names, label_column, None, values=values, lists=(choices_column,), maps=_pairs(maps)
    )


#: Stands in `task.choices` for an entry of `task.choices_column`.
CHOICE = "choice"


def generation(
    template: str, answers_column: str, maps: dict[str, dict[str, str]] | None = None
) -> RowForm:
    """Form of a row answered by free text, of which any gold text is right."""
    return RowForm(
        templates.fields(template), None, None, lists=(answers_column,), maps=_pairs(maps)
    )


def record() -> RowForm:
    """Form of a ReCoRD row."""
    return RowForm(("passage", "query"), None, None, lists=("entities", "answers"))


def python() -> RowForm:
    """Form of a row that a user's own function reads."""
    return RowForm((), None, None, whole=True)


def _pairs(maps: dict[str, dict[str, str]] | None) -> tuple[tuple[str, tuple], ...]:
    """A mapping of mappings in a form that can be a key."""
    return tuple((name, tuple(pairs.items())) for name, pairs in (maps or {}).items())


def _of_classification(task: dict[str, Any], protocol: str) -> RowForm:
    return classification(
        task["template"],
        task["label_column"],
        len(task["label_words"]),
        task["label_values"],
        task["masked"]["template"],
        task["maps"],
        protocol,
    )


def _of_multiple_choice(task: dict[str, Any], protocol: str) -> RowForm:
    return multiple_choice(
        task["template"],
        task["choices"],
        task["choices_column"],
        task["label_column"],
        task["label_values"],
        task["maps"],
    )


def _of_generation(task: dict[str, Any], protocol: str) -> RowForm:
    return generation(task["template"], task["answers_column"], task["maps"])


#: `task.kind` -> form of a checked `task` section for a kind of model.
FORMS: dict[str, Callable[[dict[str, Any], str], RowForm]] = {
    "classification": _of_classification,
    "multiple_choice": _of_multiple_choice,
    "generation": _of_generation,
    "record": lambda task, protocol: record(),
    "python": lambda task, protocol: python(),
}


def protocol_of(cell: dict[str, Any]) -> str:
    """ "causal" or "masked", as the model of a checked cell is."""
    return cell["model"].get("kind", CAUSAL)


def form_of(cell: dict[str, Any]) -> RowForm:
    """Form of a row of a checked cell's task."""
    task = cell["task"]
    return FORMS[task["kind"]](task, protocol_of(cell))
