"""What a task's settings must satisfy together, and what task, model and objective allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zolab.config import templates
from zolab.config.forms import CHOICE, MASKED, mask_template, protocol_of

Cell = dict[str, Any]

#: `train.objective` -> kinds of tasks it is made for.
_CHOOSING = ("classification", "multiple_choice", "record", "python")
_OBJECTIVES = {
    "options": _CHOOSING,
    "accuracy": _CHOOSING,
    "f1": ("generation",),
    "lm": (*_CHOOSING, "generation"),
}
#: Objectives without a gradient.
_FLAT = ("accuracy", "f1")
_METRICS = {"generation": "f1"}


def _source(cell: Cell) -> str | None:
    task = cell["task"]
    if task["path"] is None and task["hub"]["name"] is None:
        return (
            "task.path must be given: a folder with train.jsonl and test.jsonl, or task.hub.name, "
            "a data set of the hub"
        )
    return None


def _template(cell: Cell) -> str | None:
    template = cell["task"].get("template")
    if template is None:
        return None
    return _template_fault("task.template", template) or _mask_in_template(template)


def _template_fault(key: str, template: str) -> str | None:
    try:
        if not templates.fields(template):
            return (
                f"{key} = {template!r}: expected at least one field of the data in braces, such "
                "as {sentence}"
            )
    except ValueError as error:
        return f"{key} = {template!r}: expected fields such as {{sentence}} ({error})"
    return None


def _mask_in_template(template: str) -> str | None:
    if templates.MASK in [name for _, name, _ in templates.parse(template)]:
        return f"task.template = {template!r}: {{mask}} belongs into task.masked.template"
    return None


def _masked_template(cell: Cell) -> str | None:
    task = cell["task"]
    if "masked" not in task:
        return None
    template = mask_template(task["template"], task["masked"]["template"])
    try:
        before, behind = templates.split_at_mask(template)
    except ValueError as error:
        return f"task.masked.template = {template!r}: {error}"
    fault = _template_fault("task.masked.template", before + behind)
    if fault:
        return fault
    field = task["masked"]["field"]
    if field is not None and field not in templates.fields(before, behind):
        return f"task.masked.field = {field!r}: not a field of {template!r}"
    return None


def _words(cell: Cell) -> str | None:
    task = cell["task"]
    if "label_words" not in task:
        return None
    lists = {
        "task.label_words": task["label_words"],
        "task.masked.label_words": task["masked"]["label_words"],
    }
    for key, words in lists.items():
        if words is not None and (len(words) < 2 or len(set(words)) != len(words)):
            return f"{key} = {words!r}: expected at least two different words"
    under_mask = lists["task.masked.label_words"]
    if under_mask is not None and len(under_mask) != len(task["label_words"]):
        return (
            f"task.masked.label_words = {under_mask!r}: expected {len(task['label_words'])} "
            "words, as many as in task.label_words"
        )
    return _values("label_words", task)


def _values(key: str, task: dict[str, Any]) -> str | None:
    values = task["label_values"]
    if values is None or task.get("choices_column"):
        return None
    texts = list(map(str, values))
    if len(texts) != len(task[key]) or len(set(texts)) != len(texts):
        return (
            f"task.label_values = {values!r}: expected {len(task[key])} different values, as many "
            f"as in task.{key}"
        )
    return None


def _choices(cell: Cell) -> str | None:
    task = cell["task"]
    choices, column = task.get("choices"), task.get("choices_column")
    if choices is None:
        return None
    for number, choice in enumerate(choices):
        fault = _template_fault(f"task.choices[{number}]", choice)
        if fault:
            return fault
    if column is None and (len(choices) < 2 or len(set(choices)) != len(choices)):
        return f"task.choices = {choices!r}: expected at least two different answers"
    if column is not None and (len(choices) != 1 or CHOICE not in templates.fields(*choices)):
        return (
            f"task.choices = {choices!r}: with task.choices_column expected one answer with "
            "{choice} in it"
        )
    return _values("choices", task)


def _answer(cell: Cell) -> str | None:
    answer = cell["task"].get("answer")
    if answer is None:
        return None
    try:
        names = templates.fields(answer)
    except ValueError as error:
        return f"task.answer = {answer!r}: {error}"
    if names != ("answer",):
        return f"task.answer = {answer!r}: expected {{answer}} in it and no other field"
    return None


def _maps(cell: Cell) -> str | None:
    for field, pairs in cell["task"].get("maps", {}).items():
        if not isinstance(pairs, dict) or not pairs:
            return f"task.maps.{field} = {pairs!r}: expected what the data says -> what is meant"
        for given, meant in pairs.items():
            if not isinstance(meant, str):
                return f"task.maps.{field}.{given} = {meant!r}: expected a text"
    return None


def _masked_model(cell: Cell) -> str | None:
    kind, objective = cell["task"]["kind"], cell["train"]["objective"]
    if protocol_of(cell) != MASKED:
        return None
    if kind not in ("classification", "python"):
        return (
            f"task = {cell['task']['name']}: a masked model answers with one label word, so it "
            f"takes classification tasks only, not {kind}; use a causal model"
        )
    if objective == "lm":
        return (
            "train.objective = 'lm': a masked model has no text to go on with; use options or "
            "accuracy"
        )
    return None


def _function(cell: Cell) -> str | None:
    function, trusted = cell["task"].get("function"), cell["trusted_targets"]
    if function is None or any(function.startswith(f"{entry}.") for entry in trusted):
        return None
    module = function.rpartition(".")[0] or function
    return (
        f"task.function = {function!r}: expected the dotted path of a function in a module that is "
        f"trusted; add 'trusted_targets=[{module}]'"
    )


def _objective(cell: Cell) -> str | None:
    kind, objective = cell["task"]["kind"], cell["train"]["objective"]
    if objective != "auto" and kind not in _OBJECTIVES[objective]:
        fitting = [name for name, kinds in _OBJECTIVES.items() if kind in kinds]
        return (
            f"train.objective = {objective!r}: task {cell['task']['name']} ({kind}) has none; "
            f"expected auto, {' or '.join(fitting)}"
        )
    return None


def _flat_objective(cell: Cell) -> str | None:
    objective, optimizer = cell["train"]["objective"], cell["optimizer"]
    target = optimizer["_target_"]
    needs = target.startswith(_FIRST_ORDER) and target not in _UNTRAINED
    if objective in _FLAT and (needs or target in _WITH_GRADIENT):
        return (
            f"train.objective = {objective!r}: it has no gradient, and optimizer "
            f"{optimizer.get('name', target)} needs one; use a zeroth-order method"
        )
    return None


_FIRST_ORDER = "zolab.baselines."
#: Those that take no step on the objective: nothing to refuse.
_UNTRAINED = (
    "zolab.baselines.ZeroShot",
    "zolab.baselines.ICL",
    "zolab.baselines.LinearProbing",
)
_WITH_GRADIENT = ("zolab.optim.ForwardGrad",)


def _select_by(cell: Cell) -> str | None:
    by, task = cell["train"]["select_by"], cell["task"]
    metric = _METRICS.get(task["kind"], "accuracy")
    if by not in ("loss", metric):
        return (
            f"train.select_by = {by!r}: task {task['name']} ({task['kind']}) has no such metric; "
            f"expected loss or {metric}"
        )
    return None


def _calibrate(cell: Cell) -> str | None:
    if cell["optimizer"].get("calibrate") and cell["task"]["kind"] != "classification":
        return (
            f"optimizer.calibrate = True: task {cell['task']['name']} has no label words that all "
            "rows share"
        )
    return None


#: See `zolab.config.cross.CROSS_CHECKS`.
TASK_CHECKS: tuple[Callable[[Cell], str | None], ...] = (
    _source,
    _template,
    _masked_template,
    _words,
    _choices,
    _answer,
    _maps,
    _function,
    _masked_model,
    _objective,
    _flat_objective,
    _select_by,
    _calibrate,
)
