"""Tasks: rows of data in, prompts with candidate answers out."""

from zolab.tasks.base import Example, Task
from zolab.tasks.classification import Classification

#: `task.kind` -> class.
KINDS: dict[str, type[Task]] = {"classification": Classification}

__all__ = ["KINDS", "Classification", "Example", "Task"]
