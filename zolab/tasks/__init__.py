"""Tasks: rows of data in, prompts with candidate answers out."""

from __future__ import annotations

from typing import Any

from zolab.config.forms import CAUSAL
from zolab.tasks.base import Example, Task
from zolab.tasks.classification import Classification
from zolab.tasks.generation import Generation
from zolab.tasks.multiple_choice import MultipleChoice
from zolab.tasks.python import Python
from zolab.tasks.record import Record

#: `task.kind` -> class.
KINDS: dict[str, type[Task]] = {
    "classification": Classification,
    "multiple_choice": MultipleChoice,
    "generation": Generation,
    "record": Record,
    "python": Python,
}


def build_task(section: dict[str, Any], protocol: str = CAUSAL) -> Task:
    """The task of a checked `task` section, for a "causal" or a "masked" model."""
    options = {name: value for name, value in section.items() if name != "kind"}
    return KINDS[section["kind"]](protocol=protocol, **options)


__all__ = [
    "KINDS",
    "Classification",
    "Example",
    "Generation",
    "MultipleChoice",
    "Python",
    "Record",
    "Task",
    "build_task",
]
