"""What lies behind `model.path` and `task.path`: found, looked over, hashed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from tests import fake_hub
from zolab import assets, compose
from zolab.config import contents, hub
from zolab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def cell_of(*overrides: str) -> dict[str, Any]:
    return compose.check(compose.compose(compose.prepare_overrides(overrides)))


@functools.cache
def composed() -> dict[str, Any]:
    return compose.resolve(compose.compose())


def test_relative_folders_become_absolute(
    data_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir.parent)
    cell = cell_of("task.path=data", "model.path=model")
    assert cell["task"]["path"] == str(data_dir)
    assert cell["model"]["path"] == str(model_dir)
    assert cell_of()["task"]["path"] == "uci_sent"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_hub.use(tmp_path / "hub", monkeypatch)


def _answers(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> list[tuple[Any, ...]]:
    """Let the hub answer each question with a commit or an error; returns the questions."""
    asked: list[tuple[Any, ...]] = []

    def model_info(self: Any, name: str, *, revision: str | None, timeout: float) -> Any:
        asked.append((name, revision, timeout))
        if isinstance(answer, Exception):
            raise answer
        return types.SimpleNamespace(sha=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def _not_found(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # its arguments are those of the transport
    error.args = ("404",)
    return error


def test_hub_model_is_pinned_to_its_cached_commit(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.fill(hub_cache)
    fake_hub.fill(hub_cache, commit="b2" * 20, ref="v2")
    asked = _answers(monkeypatch, "c3" * 20)
    model = cell_of("model=opt_125m")["model"]
    assert (model["path"], model["revision"]) == ("facebook/opt-125m", fake_hub.COMMIT)
    assert cell_of("model=opt_125m", "model.revision=v2")["model"]["revision"] == "b2" * 20
    # a checked cell stays as it is
    assert cell_of("model=opt_125m", f"model.revision={fake_hub.COMMIT}")["model"] == model
    assert asked == []  # what is cached needs no network


def test_hub_model_that_is_not_cached_is_asked_for_once(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _answers(monkeypatch, "c3" * 20)
    for _ in range(2):
        assert cell_of("model=opt_125m")["model"]["revision"] == "c3" * 20
    assert asked == [("facebook/opt-125m", None, hub.TIMEOUT_SECONDS)]


def test_cached_config_without_weights_will_not_do(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fake_hub.fill(hub_cache)
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name in (None, "model.safetensors.index.json"):
        if name:
            (snapshot / name).write_text(json.dumps(index))
        with pytest.raises(UserError, match="its weights are not in the cache of the hub"):
            cell_of("model=opt_125m")
    without_shape = cell_of("model.path=facebook/opt-125m", "model.init=random")
    assert without_shape["model"]["revision"] == fake_hub.COMMIT
    shutil.copy(snapshot / "model-1.safetensors", snapshot / "model-2.safetensors")
    assert cell_of("model=opt_125m")["model"]["revision"] == fake_hub.COMMIT


def test_mistyped_relative_folder_says_so_at_once(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        cell_of("model.path=models/mine")
    assert str(caught.value) == (
        "model.path = 'models/mine': no such folder, and it is not in the cache of the hub "
        "(HF_HUB_OFFLINE is set); fetch it where there is a network with `hf download models/mine`"
    )
    asked = _answers(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(UserError, match=r"cannot be reached: Name or .* --revision v2`"):
        cell_of("model.path=models/mine", "model.revision=v2")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "RepositoryNotFoundError",
            r"model\.path = 'models/mine': no such folder, and no such mod",
        ),
        ("GatedRepoError", r"model\.path = 'models/mine': no such folder, and no such mod"),
        ("RevisionNotFoundError", r"model\.revision = 'v2': models/mine has no such commit"),
    ],
)
def test_what_the_hub_does_not_have_is_refused(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    _answers(monkeypatch, _not_found(getattr(huggingface_hub.errors, kind)))
    with pytest.raises(UserError, match=message):
        cell_of("model.path=models/mine", "model.revision=v2")


def _break_model(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif how == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "no weights in that folder"),
        ("no config", "no config.json in that folder"),
        ("cut off", "not a complete safetensors file"),
        ("pointer", "not a complete safetensors file"),
        ("shard", "model-2.safetensors is missing"),
    ],
)
def test_broken_model_folder_is_refused(model_dir: Path, how: str, message: str) -> None:
    _break_model(model_dir, how)
    with pytest.raises(UserError, match=message) as caught:
        cell_of(f"model.path={model_dir}")
    assert str(model_dir) in str(caught.value)


def test_random_init_needs_no_weights(model_dir: Path) -> None:
    _break_model(model_dir, "no weights")
    assert cell_of(f"model.path={model_dir}", "model.init=random")["model"]["init"] == "random"


@pytest.mark.parametrize("path", ["/no/such/folder", "nope", "./facebook/opt", "conf/nope"])
def test_missing_model_folder_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"model\.path = .*: no such folder"):
        cell_of(f"model.path={path}")


def test_missing_data_is_refused(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"task\.path = '/nope': no such folder"):
        cell_of("task.path=/nope")
    (data_dir / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"no test\.jsonl in that folder"):
        cell_of(f"task.path={data_dir}")
    with pytest.raises(UserError, match=r"not in the cache of datasets"):
        cell_of("task=sst2")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "not JSON: "),
        ("[1]", "expected a JSON object, got list"),
        ('{"label": 1}', "no field 'sentence'; the row has label"),
        ('{"sentence": "x"}', "no field 'label'; the row has sentence"),
        ('{"sentence": "x", "label": 2}', "label = 2: outside the task's range 0 to 1"),
        ('{"sentence": "x", "label": -1}', "label = -1: outside the task's range 0 to 1"),
        ('{"sentence": "x", "label": "1"}', "label = '1': expected an integer"),
        ('{"sentence": "x", "label": true}', "label = True: expected an integer"),
        ('{"sentence": "x", "label": null}', "label is null"),
        ('{"sentence": null, "label": 1}', "sentence is null"),
        ('{"sentence": ["x"], "label": 1}', "sentence: expected a text or a number, got a list"),
        ('{"sentence": {"x": 1}, "label": 1}', "sentence: expected a text or a number, got an obj"),
        ('{"sentence": "\\ud800", "label": 1}', "sentence: not valid Unicode"),
        ('{"sentence": "x", "label": 1', "not JSON: Expecting ',' delimiter at column 29"),
        ('{"sentence": "x", "label": 1e30}', "label = 1e+30: expected an integer"),
        (
            '{"sentence": "x", "label": 12345678901234567890123}',
            "label = 12345678901234567890123: ",
        ),
        ('{"sentence": "x", "label": ' + "9" * 5000 + "}", "not usable: Exceeds the limit"),
        ("[" * 100_000, "not usable: brackets are nested too deeply"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_broken_row_is_refused_by_file_and_line(
    data_dir: Path, split: str, row: str, message: str
) -> None:
    file = data_dir / f"{split}.jsonl"
    lines = file.read_text().splitlines()
    lines[6] = "\n" + row  # an empty line before it counts as a line
    file.write_text("\n".join(lines) + "\n")
    change = {**composed()["task"], "path": str(data_dir)}
    with pytest.raises(UserError) as caught:
        compose.check({**composed(), "task": change})
    assert str(caught.value).startswith(f"{file}:8: {message}")


def test_planning_and_runner_refuse_rows_in_the_same_words(data_dir: Path) -> None:
    from zolab.tasks import KINDS

    task = {**composed()["task"], "path": str(data_dir), "num_train": 1000}
    options = {key: value for key, value in task.items() if key != "kind"}
    rows = ["{broken", "[1]", '{"label": 1}', '{"sentence": "x", "label": 2}', '{"sentence": "x"']
    rows += ['{"sentence": null, "label": 1}', '{"sentence": "the only row", "label": 1}', " "]
    (data_dir / "dev.jsonl").unlink()
    for row in rows:
        (data_dir / "train.jsonl").write_text(row + "\n")
        said = []
        for refuse in (
            lambda: compose.check({**composed(), "task": task}),
            lambda: KINDS["classification"](**options).load(data_dir),
        ):
            with pytest.raises(UserError) as caught:
                refuse()
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_columns_that_are_not_used_may_hold_anything(data_dir: Path) -> None:
    from zolab.tasks import KINDS

    odd = [None, 1, "one", [1], {"a": 1}, 12345678901234567890123, 1.5, True]
    lines = [
        json.dumps({"sentence": f"row {number}", "label": number % 2, "extra": value})
        for number, value in enumerate(odd)
    ]
    for split in ("train", "dev", "test"):
        (data_dir / f"{split}.jsonl").write_text("\r\n".join(lines) + "\n\n")
    task = compose.check({**composed(), "task": {**composed()["task"], "path": str(data_dir)}})[
        "task"
    ]
    options = {key: value for key, value in task.items() if key != "kind"}
    examples = KINDS["classification"](**options).load(data_dir)["train"]
    assert [example.prompt for example in examples] == [f"row {n} It was" for n in range(len(odd))]
    assert [example.label for example in examples] == [n % 2 for n in range(len(odd))]


def test_fields_are_filled_in_as_they_are_written(data_dir: Path) -> None:
    from zolab.tasks import KINDS

    values = ["text", 3, 2.0, True, 12345678901234567890123]
    rows = [json.dumps({"sentence": value, "label": 0}) for value in values]
    (data_dir / "train.jsonl").write_text("\n".join(rows))
    options = {key: value for key, value in composed()["task"].items() if key != "kind"}
    examples = KINDS["classification"](**options).load(data_dir)["train"]
    assert [example.prompt.removesuffix(" It was") for example in examples] == [
        *("text", "3", "2.0", "True", "12345678901234567890123")
    ]


def test_a_lone_training_row_needs_a_dev_file(data_dir: Path) -> None:
    (data_dir / "train.jsonl").write_text('\n{"sentence": "alone", "label": 1}\n')
    assert cell_of(f"task.path={data_dir}")
    (data_dir / "dev.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl:2: the only row; without a dev\.jsonl"):
        cell_of(f"task.path={data_dir}")


def test_empty_or_undecodable_data_is_refused(data_dir: Path) -> None:
    (data_dir / "dev.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"dev\.jsonl: no rows"):
        cell_of(f"task.path={data_dir}")
    (data_dir / "dev.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"dev\.jsonl: cannot be read"):
        cell_of(f"task.path={data_dir}")


def test_big_hashes_are_remembered_and_noticed_when_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = tmp_path / "big", tmp_path / contents.CACHE_NAME
    file.write_bytes(b"a" * contents.CACHE_FROM_BYTES)
    os.utime(file, (1e9, 1e9))
    monkeypatch.setattr(contents, "_memo", {})
    first = contents.file_hash(file, cache)
    contents.save_hashes(tmp_path)
    size, mtime_ns, stored = json.loads(cache.read_text())[str(file)]
    assert (size, mtime_ns, stored) == (contents.CACHE_FROM_BYTES, 10**18, first)
    # another process reads the stored value instead of the file
    cache.write_text(json.dumps({str(file): [size, mtime_ns, "remembered"]}))
    monkeypatch.setattr(contents, "_memo", {})
    assert contents.file_hash(file, cache) == "remembered"
    file.write_bytes(b"b" * contents.CACHE_FROM_BYTES)
    monkeypatch.setattr(contents, "_memo", {})
    assert contents.file_hash(file, cache) not in ("remembered", first)
    # just written: not yet safe to remember
    assert contents._memo == {}
    cache.write_text("not json")
    assert contents.file_hash(file, cache) not in ("remembered", first)


def test_embedded_model_and_task_have_their_cards_and_terms() -> None:
    assert assets.models() == ["opt-prompt-2m"]
    assert assets.tasks() == ["uci_sent"]
    assert "Terms:" in (assets.model_dir("opt-prompt-2m") / "README.md").read_text()
    card = (assets.task_dir("uci_sent") / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert "Kotzias" in card
    for file in contents.split_files(assets.task_dir("uci_sent")):
        assert contents.file_hash(file) in card  # the card names exactly these files
    with pytest.raises(KeyError):
        assets.model_dir("../tasks")
    assert assets.locate_model("no-such-model") is None
    assert assets.locate_task("no-such-task") is None
