"""Data sets of the hub, out of the cache of `datasets`, and what is said where it lacks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks import fake_hub_data
from zolab import compose
from zolab.config import hub_data
from zolab.errors import UserError
from zolab.tasks import build_task


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub_data._pin.cache_clear()
    return tmp_path / "cache"


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"idx": i, "sentence": f"row {i}", "label": i % 2} for i in range(start, start + count)]


def cell(*overrides: str) -> dict[str, Any]:
    return compose.check(compose.compose(compose.prepare_overrides(overrides)))


def numbers(examples: list[Any]) -> set[int]:
    return {int(example.prompt.split()[1]) for example in examples}


def test_the_cache_we_make_is_one_that_datasets_reads(cache: Path) -> None:
    import datasets

    fake_hub_data.fill(cache, "nyu-mll/glue", "sst2", {"train": rows(7), "validation": rows(3)})
    found = datasets.load_dataset("nyu-mll/glue", "sst2", cache_dir=str(cache))
    assert {name: len(split) for name, split in found.items()} == {"train": 7, "validation": 3}


def test_splits_come_from_one_permutation_of_the_training_split(cache: Path) -> None:
    splits = {"train": rows(60), "validation": rows(30, 100), "test": rows(5, 900)}
    fake_hub_data.fill(cache, "nyu-mll/glue", "sst2", splits)
    sizes = ["task.num_train=20", "task.num_dev=10", "task.num_test=8"]
    task = build_task(cell("task=sst2", *sizes)["task"])
    found = task.load()
    train, dev, test = (numbers(found[name]) for name in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (20, 10, 8)
    assert not train & dev
    assert train | dev <= set(range(60))
    assert test <= set(range(100, 130))
    assert found == task.load()
    # The dev rows are the last of those drawn: fewer training rows leave them where they were
    # drawn, and another seed draws others.
    assert build_task(cell("task=sst2", *sizes, "task.split_seed=1")["task"]).load() != found
    whole = build_task(cell("task=sst2", "task.num_dev=50")["task"]).load()
    assert [len(whole[name]) for name in ("train", "dev", "test")] == [10, 50, 30]


def test_a_cell_is_named_by_the_commit(cache: Path) -> None:
    fake_hub_data.fill(cache, "nyu-mll/glue", "sst2", {"train": rows(9), "validation": rows(3)})
    first = cell("task=sst2")
    assert first["task"]["hub"]["revision"] == fake_hub_data.COMMIT
    other = "c3" * 20
    fake_hub_data.fill(
        cache, "nyu-mll/glue", "sst2", {"train": rows(8), "validation": rows(3)}, other
    )
    hub_data._pin.cache_clear()
    second = cell("task=sst2", f"task.hub.revision={other}")
    assert compose.run_id(first) != compose.run_id(second)
    first["task"]["num_dev"] = second["task"]["num_dev"] = 2
    assert len(build_task(first["task"]).load()["train"]) == 7
    assert len(build_task(second["task"]).load()["train"]) == 6
    stored = compose.read_cell(compose.write_cell({**first, "run_root": str(cache / "runs")}))
    assert stored["task"] == first["task"]


def test_wsc_and_its_slip(cache: Path) -> None:
    text = {"text": "Ann met Eve because she asked.", "span1_text": "Ann", "span2_text": "she"}
    data = [{**text, "text": f"row {i}: {text['text']}", "label": i % 2} for i in range(554)]
    fake_hub_data.fill(
        cache, "aps/super_glue", "wsc.fixed", {"train": data, "validation": data[:104]}
    )
    for name, sizes in (("wsc", (454, 100, 104)), ("wsc_54", (54, 500, 104))):
        found = build_task(cell(f"task={name}")["task"]).load()
        assert tuple(len(found[split]) for split in ("train", "dev", "test")) == sizes


def test_rows_without_a_label_are_left_out(cache: Path) -> None:
    data = [
        {"premise": f"p {i}", "hypothesis": "h", "label": -1 if i % 5 == 0 else i % 3}
        for i in range(50)
    ]
    fake_hub_data.fill(
        cache, "stanfordnlp/snli", "plain_text", {"train": data, "validation": data[:9]}
    )
    found = build_task(cell("task=snli", "task.num_dev=10")["task"]).load()
    assert [len(found[split]) for split in ("train", "dev", "test")] == [30, 10, 7]


def test_missing_data_names_the_command_that_fetches_them() -> None:
    with pytest.raises(UserError) as caught:
        cell("task=rte")
    assert str(caught.value) == (
        "task.hub.name = 'aps/super_glue': not in the cache of datasets (HF_HUB_OFFLINE is set); "
        'fetch it where there is a network with `python -c "from datasets import load_dataset; '
        "load_dataset('aps/super_glue', 'rte')\"`, or give a folder in task.path"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.hub.test=nowhere", "nyu-mll/glue has no split 'nowhere'; the cache has train, vali"),
        ('task.template="{text} So"', "nyu-mll/glue sst2 train: no field 'text'; the data set has"),
        ("task.num_dev=9", "task.num_dev = 9: nyu-mll/glue sst2 train has 9 rows, so none"),
        ("task.label_words=[a]", "expected at least two different words"),
        ("task.hub.config=null", "task.hub.config must be given: the cache has cola, sst2 of"),
    ],
)
def test_hub_data_that_cannot_be_used(cache: Path, override: str, message: str) -> None:
    splits = {"train": rows(9), "validation": rows(3)}
    fake_hub_data.fill(cache, "nyu-mll/glue", "sst2", splits)
    fake_hub_data.fill(cache, "nyu-mll/glue", "cola", splits)
    with pytest.raises(UserError) as caught:
        build_task(cell("task=sst2", override)["task"]).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_row_is_named(cache: Path) -> None:
    data = [{"sentence": "fine", "label": 7}] * 9
    fake_hub_data.fill(cache, "nyu-mll/glue", "sst2", {"train": data, "validation": data})
    with pytest.raises(UserError, match=r"nyu-mll/glue sst2 train, row \d: label = 7: outside"):
        build_task(cell("task=sst2", "task.num_dev=2")["task"]).load()
