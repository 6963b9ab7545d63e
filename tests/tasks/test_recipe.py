"""The README's recipe for a task of one's own, taken from the README as it stands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from zolab import cli
from zolab.config.contents import contents
from zolab.errors import UserError
from zolab.ledger import read_json
from zolab.tasks import build_task

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["tracking=local", "train.steps=2"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of its command, in a folder with its two files and data."""
    text = (ROOT / "README.md").read_text()
    part = text[text.index("- **A task**") : text.index("- **A model of transformers**")]
    for body in re.findall(r"  ```\w+\n(.*?)  ```", part, re.DOTALL):
        body = re.sub(r"^  ", "", body, flags=re.MULTILINE)
        name = re.match(r"# ([\w/.]+)", body)[1]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body)
    (command,) = re.findall(r"`zolab (--config-dir .*?)`", part)
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"title": "late", "body": "My parcel is not here.", "topic": "delivery"},
        {"title": "refund", "body": "I paid twice.", "topic": "money"},
    ]
    for split in ("train", "dev", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    return shlex.split(command.replace("=DIR", f"={data}"))


def test_two_small_files_make_a_task(recipe: list[str]) -> None:
    assert cli.main([*recipe, *SHORT]) == 0
    (run,) = Path("runs").glob("*/")
    assert read_json(run / "result.json")["data"]["num_train"] == 8


def test_the_function_is_part_of_what_names_a_run() -> None:
    task = {"path": "uci_sent", "function": "json.loads"}
    cell = {"task": task, "run_root": "runs", "model": {
        "path": "opt-prompt-2m", "init": "pretrained", "shape": {}, "kind": "causal",
    }}  # fmt: skip
    code = contents(cell)["task_code"]
    assert contents({**cell, "task": {**task, "function": "csv.reader"}})["task_code"] != code
    with pytest.raises(UserError, match=r"task\.function = 'no_such\.thing': no module 'no_such'"):
        contents({**cell, "task": {**task, "function": "no_such.thing"}})


def test_what_is_said_of_a_function_that_does_not_fit(
    recipe: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*recipe[:-1], *SHORT]) == 2
    assert "add 'trusted_targets=[my_tasks]'" in capsys.readouterr().err
    task = {"kind": "python", "name": "x", "path": str(tmp_path / "data")}
    with pytest.raises(UserError, match="has no attribute 'other'"):
        build_task({**task, "function": "my_tasks.other"})
    (tmp_path / "odd.py").write_text("def key(row):\n    return row['head']\n\ndef text(row):\n"
                                     "    return 'no example'\n")  # fmt: skip
    with pytest.raises(UserError, match=r"train\.jsonl:1: task\.function: KeyError: 'head'"):
        build_task({**task, "function": "odd.key"}).load()
    with pytest.raises(UserError, match=r"task\.function gave str: expected a zolab\.tasks\.Exam"):
        build_task({**task, "function": "odd.text"}).load()
