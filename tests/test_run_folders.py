"""Run directories: written once, followed by later commands, refused in one line."""

from __future__ import annotations

import copy
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_compose import cell_of, composed
from zolab import compose
from zolab.errors import UserError
from zolab.ledger import acquire


def test_cell_is_written_once_and_reads_back(tmp_path: Path) -> None:
    cell = cell_of(f"run_root={tmp_path / 'runs'}", "optimizer.lr=1e-05")
    folder = compose.write_cell(cell)
    assert folder == tmp_path / "runs" / compose.run_id(cell)
    assert compose.read_cell(folder) == cell
    assert yaml.safe_load((folder / "config.yaml").read_text()) == cell
    before = (folder / "config.yaml").stat()
    assert compose.write_cell(cell) == folder
    assert (folder / "config.yaml").stat() == before
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


AGAIN = {
    "tracking": {"name": "local", "wandb": False},
    "model": {"device": "cuda:1"},
    "train": {"log_every": 3, "checkpoint_minutes": 0.5, "eval_batch_size": 8},
    "launcher": {"threads": 2},
}


def _again(cell: dict[str, Any]) -> dict[str, Any]:
    """The same cell as a later command may want it run."""
    changed = copy.deepcopy(cell)
    for section, settings in AGAIN.items():
        changed[section] |= settings
    return compose.check(changed)


def test_unfinished_cell_goes_on_as_the_new_command_says(tmp_path: Path) -> None:
    cell = compose.check({**composed(), "run_root": str(tmp_path)})
    again = _again(cell)
    folder = compose.write_cell(cell)
    with acquire(folder):  # the live process read its config already
        assert compose.write_cell(again) == folder
        assert compose.read_cell(folder) == cell
    assert compose.write_cell(again) == folder
    assert compose.read_cell(folder) == again != cell
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_finished_cell_keeps_the_config_it_ran_with(tmp_path: Path) -> None:
    cell = compose.check({**composed(), "run_root": str(tmp_path)})
    folder = compose.write_cell(cell)
    (folder / "result.json").write_text("{}")
    before = (folder / "config.yaml").stat()
    assert compose.write_cell(_again(cell)) == folder
    assert (folder / "config.yaml").stat() == before


def test_cell_whose_files_moved_goes_on_where_they_are(
    data_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    def checked(data: Path, model: Path) -> dict[str, Any]:
        tree = copy.deepcopy(composed())
        tree["task"]["path"], tree["model"]["path"] = str(data), str(model)
        return compose.check({**tree, "run_root": str(tmp_path / "runs")})

    folder = compose.write_cell(checked(data_dir, model_dir))
    data, model = data_dir.rename(tmp_path / "data2"), model_dir.rename(tmp_path / "model2")
    assert compose.write_cell(checked(data, model)) == folder
    stored = compose.read_cell(folder)
    assert (stored["task"]["path"], stored["model"]["path"]) == (str(data), str(model))
    with (data / "train.jsonl").open("a") as file:
        file.write('{"sentence": "one more", "label": 1}\n')
    assert compose.write_cell(checked(data, model)) != folder


def test_many_writers_of_one_cell_leave_one_config(tmp_path: Path) -> None:
    cell = cell_of(f"run_root={tmp_path}")
    threads = [threading.Thread(target=compose.write_cell, args=(cell,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert compose.read_cell(folder) == cell


def test_collision_with_another_cell_is_refused(tmp_path: Path) -> None:
    cell = cell_of(f"run_root={tmp_path}")
    folder = tmp_path / compose.run_id(cell)
    folder.mkdir()
    other = yaml.safe_dump(cell_of("seed=1"))
    (folder / "config.yaml").write_text(other)
    with pytest.raises(UserError, match="another cell with the same run id"):
        compose.write_cell(cell)
    assert (folder / "config.yaml").read_text() == other


def test_run_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for root in (file, file / "below"):
        with pytest.raises(UserError, match=r"run_root = .*file is a file"):
            compose.write_cell(cell_of(f"run_root={root}"))
    assert file.read_text() == "precious"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_run_root_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cell = cell_of(f"run_root={tmp_path / 'runs'}")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="cannot write there") as caught:
        compose.write_cell(cell)
    assert os.strerror(code) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_config_of_a_run_names_the_file(tmp_path: Path) -> None:
    for text in (None, "[1, 2]", "a: [", "model: {}"):
        if text is not None:
            (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: "):
            compose.read_cell(tmp_path)
