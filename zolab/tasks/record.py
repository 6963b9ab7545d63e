"""ReCoRD (Zhang et al. 2018, arXiv 1810.12885): which entity stands in the query's gap."""

from __future__ import annotations

from typing import Any

from zolab.config import forms
from zolab.data import Row
from zolab.tasks.base import Example, Task


class Record(Task):
    """The passage, its highlights as list items, and the query as one more item.

    A candidate is the whole query with an entity in the gap; an answer is right if it is any of the
    gold entities. Trained on the first gold one (MeZO, arXiv 2305.17333, appendix E).
    """

    objective = "lm"

    def __init__(self, name: str, path: str | None, **options: Any) -> None:
        super().__init__(name, path, **options)
        self.form = forms.record()

    def example(self, row: Row) -> Example:
        passage, query = row.fields["passage"].strip(), row.fields["query"].strip()
        golds, entities = row.fields["answers"], list(dict.fromkeys(row.fields["entities"]))
        missing = [gold for gold in golds if gold not in entities]
        if missing:
            row.fail(f"answers: {missing[0]!r} is not one of the entities")
        if "@placeholder" not in query or len(entities) < 2:
            row.fail("expected @placeholder in the query and two or more entities")
        text = passage.replace("@highlight\n", "- ")
        candidates = tuple(" " + query.replace("@placeholder", entity) for entity in entities)
        right = tuple(i for i, entity in enumerate(entities) if entity in golds)
        return Example(f"{text}\n-", candidates, entities.index(golds[0]), right=right)
