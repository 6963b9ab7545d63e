"""Every task's prompts on hand-written rows, against a golden file checked by eye.

`python -m tests.tasks.test_prompts` prints the file anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks import own_rows
from zolab import compose
from zolab.config.forms import CAUSAL, MASKED
from zolab.tasks import Example, build_task

GOLDEN = Path(__file__).parent / "prompts.txt"
MASKED_TASKS = [t for t in own_rows.TASKS if t not in own_rows.CAUSAL_ONLY]
CASES = [(t, CAUSAL) for t in own_rows.TASKS] + [(t, MASKED) for t in MASKED_TASKS]


def rendered(task: str, protocol: str, folder: Path) -> str:
    """Three examples of a task as the golden file shows them."""
    overrides = [f"task={task}", f"task.path={own_rows.write(task, folder)}"]
    section = compose.check(compose.compose(overrides))["task"]
    examples = build_task(section, protocol).load()["test"][:3]
    blocks = [f"== {task} {protocol}"] + [_shown(example) for example in examples]
    return "\n".join(blocks) + "\n"


def _shown(example: Example) -> str:
    right = example.right or (example.label,)
    marks = ["*" if i in right else " " for i in range(len(example.candidates))]
    marks[example.label] = ">"
    answers = zip(marks, example.candidates, strict=True)
    lines = [f"{example.prompt}[{example.suffix!r}]" if example.suffix else f"{example.prompt}["]
    lines += [f"  {mark} {text!r}" for mark, text in answers]
    if example.answers:
        lines.append("  gold: " + " | ".join(example.answers))
    return "\n".join(lines)


@pytest.mark.parametrize(("task", "protocol"), CASES)
def test_prompts_are_those_of_the_golden_file(task: str, protocol: str, tmp_path: Path) -> None:
    golden = GOLDEN.read_text()
    assert rendered(task, protocol, tmp_path / "data") in golden


def test_the_golden_file_holds_nothing_else() -> None:
    heads = [x for x in GOLDEN.read_text().splitlines() if x.startswith("== ")]
    assert heads == [f"== {task} {protocol}" for task, protocol in CASES]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as base:
        for number, (name, kind) in enumerate(CASES):
            print(rendered(name, kind, Path(base) / str(number)), end="")
