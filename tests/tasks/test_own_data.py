"""A user's own data from YAML alone: jsonl, csv and tsv; k rows a label; what is refused."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from zolab import compose
from zolab.errors import UserError
from zolab.tasks import build_task
from zolab.tasks.base import Example


def write(folder: Path, suffix: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.{suffix}").write_text(text)
    return folder


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write(folder, "jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, *overrides: str, protocol: str = "causal") -> list[Example]:
    cell = compose.check(
        compose.compose(compose.prepare_overrides([f"task.path={folder}", *overrides]))
    )
    return build_task(cell["task"], protocol).load()["test"]


CLASSIFY = ["task=classification", "task.label_words=[' bad',' good']"]


def test_csv_with_texts_for_labels(tmp_path: Path) -> None:
    text = '\ufeffverdict,review\npos,"Fine, warm and ""kind""."\nneg,"two\nlines"\n'
    examples = load(
        write(tmp_path / "data", "csv", text), *CLASSIFY, 'task.template="{review} It was"',
        "task.label_column=verdict", "task.label_values=[neg,pos]",
    )  # fmt: skip
    assert examples == [
        Example('Fine, warm and "kind". It was', (" bad", " good"), 1),
        Example("two\nlines It was", (" bad", " good"), 0),
    ]


def test_tsv_with_numbers_for_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "tsv", 'label\treview\n1\tsay "yes\r\n0\tno\n')
    examples = load(folder, *CLASSIFY, 'task.template="{review} It was"')
    assert [(e.prompt, e.label) for e in examples] == [('say "yes It was', 1), ("no It was", 0)]


def test_a_mask_follows_the_prompt_unless_a_template_says_more(tmp_path: Path) -> None:
    folder = jsonl(tmp_path / "data", [{"t": "Fine.", "label": 1}])
    options = [*CLASSIFY, 'task.template="{t} It was"']
    (plain,) = load(folder, *options, protocol="masked")
    assert (plain.prompt, plain.suffix) == ("Fine. It was ", "")
    more = 'task.masked.template="It was {mask}: {t:bare|lower}!"'
    (shaped,) = load(folder, *options, more, protocol="masked")
    assert (shaped.prompt, shaped.suffix) == ("It was ", ": fine!")
    (causal,) = load(folder, *options, more)
    assert (causal.prompt, causal.suffix) == ("Fine. It was", "")


def test_choices_in_columns_or_in_one_list(tmp_path: Path) -> None:
    rows = [{"q": "Why?", "a": "Because.", "b": "I'm sure.", "all": ["x", "y", "z"], "best": 1}]
    folder = jsonl(tmp_path / "data", rows)
    own = ["task=multiple_choice", 'task.template="{q}"', "task.label_column=best"]
    (example,) = load(folder, *own, "task.choices=[' {a:inside}',' {b:inside}']")
    assert example == Example("Why?", (" because.", " I'm sure."), 1)
    (example,) = load(folder, *own, "task.choices=['\\n- {choice}']", "task.choices_column=all")
    assert example == Example("Why?", ("\n- x", "\n- y", "\n- z"), 1)


def test_answers_as_a_text_a_list_or_inside_an_object(tmp_path: Path) -> None:
    for answers in ("Rome", ["Rome", "Roma"], {"text": ["Rome"]}):
        folder = jsonl(tmp_path / "data", [{"q": "Where?", "gold": answers}])
        column = "gold.text" if isinstance(answers, dict) else "gold"
        (example,) = load(
            folder, "task=generation", 'task.template="{q}\\nA:"', f"task.answers_column={column}"
        )
        assert example.prompt == "Where?\nA:"
        assert example.candidates == (" Rome\n",)
        assert example.answers == (("Rome", "Roma") if isinstance(answers, list) else ("Rome",))


def test_k_rows_of_each_label_in_train_and_again_in_dev(tmp_path: Path) -> None:
    rows = [{"sentence": f"row {i}", "label": int(i % 5 == 0)} for i in range(60)]
    folder = jsonl(tmp_path / "data", rows)
    (folder / "dev.jsonl").unlink()

    def splits(*overrides: str) -> dict[str, list[Example]]:
        options = ["task=sst2", f"task.path={folder}", *overrides]
        cell = compose.check(compose.compose(compose.prepare_overrides(options)))
        return build_task(cell["task"]).load()

    drawn = {}
    for seed in (13, 21, 42, 87, 100):
        found = splits("task.k=4", f"task.split_seed={seed}")
        for name in ("train", "dev"):
            assert collections.Counter(e.label for e in found[name]) == {0: 4, 1: 4}
        assert not {e.prompt for e in found["train"]} & {e.prompt for e in found["dev"]}
        assert len(found["test"]) == 60
        drawn[seed] = tuple(e.prompt for e in found["train"])
    assert len(set(drawn.values())) == 5
    assert splits("task.k=4") == splits("task.k=4")
    with pytest.raises(UserError, match=r"task\.k = 9: .*train\.jsonl has 12 rows of label 1"):
        splits("task.k=9")


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("copa", {"question": "reason"}, "question = 'reason': expected one of cause, effect"),
        ("copa", {"label": 2}, "label = 2: outside the task's range 0 to 1"),
        ("copa", {"choice2": None}, "choice2 is null"),
        ("squad", {"answers": {"text": []}}, "answers.text: the list is empty"),
        ("squad", {"answers": {"text": [3]}}, "answers.text: expected a text or a list of texts"),
        ("squad", {"answers": {"texts": ["a"]}}, "answers.text: expected a text or a list of"),
        ("squad", {"title": ["a"]}, "title: expected a text or a number, got a list"),
        ("record", {"entities": "Harlan, Brandt"}, ""),
        ("drop", {"answers_spans": None}, "answers_spans is null"),
    ],
)
def test_rows_that_a_task_cannot_use(
    task: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from tests.tasks import own_rows

    folder = own_rows.write(task, tmp_path / "data")
    lines = (folder / "test.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **row})
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as caught:
        load(folder, f"task={task}")
    assert str(caught.value).startswith(f"{folder / 'test.jsonl'}:3: {message}")


def test_an_entity_that_is_no_candidate_is_named(tmp_path: Path) -> None:
    row = {"passage": "p", "query": "@placeholder ran", "entities": ["A", "B"], "answers": ["C"]}
    with pytest.raises(UserError, match=r"jsonl:1: answers: 'C' is not one of the entities"):
        load(jsonl(tmp_path / "data", [row]), "task=record")
    row |= {"query": "no gap", "answers": ["A"]}
    with pytest.raises(UserError, match=r"jsonl:1: expected @placeholder in the query"):
        load(jsonl(tmp_path / "data", [row]), "task=record")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("review,label\nfine\n", "test.csv:2: label is null"),
        ("review,label\nfine,1,2\n", "test.csv:2: more values than the 2 columns"),
        ("review,label\nfine,one\n", "test.csv:2: label = 'one': expected an integer"),
        ("text,label\nfine,1\n", "test.csv:2: no field 'review'; the row has label, text"),
        ("review,label\n", "test.csv: no rows"),
        ('review,label\n"fine,1\n', "test.csv:2: unexpected end of data"),
    ],
)
def test_tables_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "csv", "review,label\nfine,1\npoor,0\n")
    (folder / "test.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        load(folder, *CLASSIFY, 'task.template="{review}"')
    assert message in str(caught.value)


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "csv", "review,label\nfine,1\npoor,0\n")
    (folder / "test.jsonl").write_text('{"review": "fine", "label": 1}\n')
    with pytest.raises(UserError, match=r"both test\.jsonl and test\.csv; keep one of them"):
        load(folder, *CLASSIFY, 'task.template="{review}"')
