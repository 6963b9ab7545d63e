"""What lies behind `model.path` and `task.path`: found, looked over and hashed. No torch.

A cell's identity holds the hashes, not the paths, so that moved data keeps its runs and changed
data gets new ones.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zolab import assets
from zolab.config import hub
from zolab.config.rows import SUFFIXES
from zolab.errors import UserError, first_line, nearest

CACHE_NAME = ".hashes.json"
#: Smaller files are hashed each time: cheaper than trusting a time stamp.
CACHE_FROM_BYTES = 1 << 20
#: A file touched this recently may change again within one tick of its time stamp (seconds).
SETTLED_SECONDS = 2.0

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_OTHER_MODEL_FILES = (
    "config.json",
    "*.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*.model",
)
SPLITS = ("train", "dev", "test")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_memo: dict[str, tuple[int, int, str]] = {}
_seen: dict[str, Any] | None = None


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Meanwhile files are looked at once for all cells that name the same ones: a sweep's plan."""
    global _seen
    outer, _seen = _seen, {} if _seen is None else _seen
    try:
        yield
    finally:
        _seen = outer


def remembered(kind: str, cell: dict[str, Any], look: Callable[[dict[str, Any]], Any]) -> Any:
    """What `look` says of the files a cell names, from memory inside `looked_at_once`.

    Args:
        kind: names the question.
        cell: checked config; only its model, task and run_root may decide the answer.
        look: asks the files.
    """
    if _seen is None:
        return look(cell)
    key = kind + json.dumps([cell["model"], cell["task"], cell["run_root"]], sort_keys=True)
    if key not in _seen:
        _seen[key] = look(cell)
    return copy.deepcopy(_seen[key])


def locate_model(model: dict[str, Any]) -> Path | None:
    """Folder of the model of a checked config, or None for a hub name.

    Raises:
        UserError: the folder is missing, has no config.json or (for init=pretrained) no weights.
    """
    path = model["path"]
    folder = assets.locate_model(path)
    if folder is None:
        # `models/mine` beside an existing folder `models` is a slip, not a hub name.
        if _HUB_NAME.fullmatch(path) and not Path(path).parent.is_dir():
            return None
        raise UserError(
            f"model.path = {path!r}: no such folder; expected a folder, a hub name such as "
            f"facebook/opt-125m, or an embedded model ({', '.join(assets.models())})"
            f"{nearest(path, assets.models())}"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path = {path!r}: no config.json in that folder")
    if model["init"] == "pretrained":
        _look_over_weights(path, folder)
    return folder


def uses_shape(model: Mapping[str, Any]) -> bool:
    """Whether a model is drawn at random from `model.shape`, with nothing read from the hub."""
    random = model["init"] == "random" and bool(model.get("shape"))
    return random and assets.locate_model(model["path"]) is None


def stored_shape(model: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json of a checked `model` section; None for a hub model that is not cached.

    Raises:
        UserError: it is not JSON.
    """
    folder = assets.locate_model(model["path"])
    file = hub.cached_file(model, "config.json") if folder is None else folder / "config.json"
    if file is None:
        return None
    try:
        shape = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"model.path = {model['path']!r}: {file}: {first_line(error)}") from None
    return shape if isinstance(shape, dict) else None


def _look_over_weights(path: str, folder: Path) -> None:
    weights = _matching(folder, WEIGHTS)
    if not weights:
        raise UserError(
            f"model.path = {path!r}: no weights in that folder (expected *.safetensors); "
            "use model.init=random for random weights"
        )
    present = {file.name for file in weights}
    for index in _matching(folder, ("*.safetensors.index.json",)):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"model.path = {path!r}: {index.name} is not an index of weights"
            ) from None
        missing = sorted(shards - present)
        if missing:
            raise UserError(f"model.path = {path!r}: {missing[0]} is missing (see {index.name})")
    for file in weights:
        if file.suffix == ".safetensors" and not _is_safetensors(file):
            raise UserError(
                f"model.path = {path!r}: {file.name} is not a complete safetensors file "
                "(cut off, or a pointer left by git-lfs?)"
            )


def _is_safetensors(file: Path) -> bool:
    """Whether the header fits the file: 8 bytes of header length, JSON, then the tensors."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 10 or not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return size == 8 + length + max(ends, default=0)


def locate_task(task: dict[str, Any]) -> Path | None:
    """Folder of the data of a checked config; None if they come from the hub.

    Raises:
        UserError: the folder, or its training or test file, is missing, or a split has two files.
    """
    path = task["path"]
    if path is None:
        return None
    folder = assets.locate_task(path)
    if folder is None:
        hint = nearest(path, assets.tasks())
        raise UserError(
            f"task.path = {path!r}: no such folder; expected a folder with train.jsonl and "
            f"test.jsonl, or an embedded task ({', '.join(assets.tasks())}){hint}"
        )
    for split in SPLITS:
        files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
        found = [file.name for file in files if file.is_file()]
        if len(found) > 1:
            raise UserError(f"task.path = {path!r}: both {' and '.join(found)}; keep one of them")
        if not found and split != "dev":
            raise UserError(
                f"task.path = {path!r}: no {split}.jsonl in that folder (nor .csv, .tsv)"
            )
    return folder


def split_files(folder: Path) -> list[Path]:
    """The data files of a task's folder, train first; dev may be absent."""
    files = [folder / f"{split}{suffix}" for split in SPLITS for suffix in SUFFIXES]
    return [file for file in files if file.is_file()]


def contents(cell: dict[str, Any]) -> dict[str, Any]:
    """Hashes of every data and model file a checked cell reads: name -> sha256 in hex.

    A hub model or data set is named by its hub name and commit instead (see `zolab.config.hub` and
    `hub_data`). With init=random the weights of the model's folder are not read and not hashed;
    one drawn from `model.shape` reads the embedded tokenizer and nothing else.

    Raises:
        UserError: a file or folder is missing or unreadable.
    """
    return remembered("contents", cell, _contents)


def _contents(cell: dict[str, Any]) -> dict[str, Any]:
    cache = Path(cell["run_root"]) / CACHE_NAME
    task_dir = locate_task(cell["task"])
    data = cell["task"]["hub"] if task_dir is None else None
    model = cell["model"]
    model_dir = locate_model(model)
    behind: dict[str, Any]
    if uses_shape(model):
        patterns = _OTHER_MODEL_FILES[3:]
        files = _matching(assets.model_dir(assets.TOKENIZER), patterns)
        behind = {"tokenizer": _hash_all("model.path", files, cache)}
    elif model_dir is None:
        behind = {"hub": model["path"], "revision": model["revision"] or "main"}
    else:
        patterns = _OTHER_MODEL_FILES + (WEIGHTS if model["init"] == "pretrained" else ())
        behind = _hash_all("model.path", _matching(model_dir, patterns), cache)
    if data is None:
        data = _hash_all("task.path", split_files(task_dir), cache)
    code = _task_code(cell["task"])
    return {"model": behind, "task": data, **({"task_code": code} if code else {})}


def _task_code(task: dict[str, Any]) -> str | None:
    """Hash of the module with a task's own function; None for tasks without."""
    if "function" not in task:
        return None
    module = task["function"].rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UserError(
            f"task.function = {task['function']!r}: no module {module!r} (is its folder in "
            "PYTHONPATH?)"
        )
    return file_hash(Path(spec.origin))


def bytes_to_hash(cell: Mapping[str, Any]) -> int:
    """Bytes of big files that `contents` would have to read because no hash of them is known."""
    model_dir = locate_model(cell["model"])
    if model_dir is None or cell["model"]["init"] == "random":
        return 0
    known = {**_read_cache(Path(cell["run_root"]) / CACHE_NAME), **_memo}
    unknown = 0
    for file in _matching(model_dir, WEIGHTS):
        stat = file.stat()
        mark = (stat.st_size, stat.st_mtime_ns)
        if tuple(known.get(str(file.resolve()), ())[:2]) != mark:
            unknown += stat.st_size
    return unknown


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and any(fnmatch.fnmatch(entry.name, pattern) for pattern in patterns)
    )


def _hash_all(key: str, files: list[Path], cache: Path) -> dict[str, str]:
    try:
        return {file.name: file_hash(file, cache) for file in files}
    except OSError as error:
        raise UserError(f"{key}: cannot read {error.filename}: {error.strerror}") from None


def file_hash(file: Path, cache: Path | None = None) -> str:
    """sha256 of a file in hex; of a big file remembered by path, size and time of change.

    Args:
        file: the file to hash.
        cache: JSON file with remembered hashes, read if it exists; written by `save_hashes`.
    """
    stat = file.stat()
    key, mark = str(file.resolve()), (stat.st_size, stat.st_mtime_ns)
    big = stat.st_size >= CACHE_FROM_BYTES
    if big:
        known = _memo.get(key) or _read_cache(cache).get(key)
        if known and tuple(known[:2]) == mark:
            _memo[key] = (*mark, known[2])
            return known[2]
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if big and time.time() - stat.st_mtime > SETTLED_SECONDS:
        _memo[key] = (*mark, digest)
    return digest


def _read_cache(cache: Path | None) -> dict[str, Any]:
    if cache is None:
        return {}
    try:
        stored = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def save_hashes(run_root: Path) -> None:
    """Keep the big files' hashes of this process beside the runs; a failure costs only time."""
    cache = run_root / CACHE_NAME
    stored = _read_cache(cache)
    merged = {**stored, **{key: list(value) for key, value in _memo.items()}}
    if merged == stored:
        return
    temp = cache.with_name(f"{CACHE_NAME}.{uuid.uuid4().hex}")
    try:
        temp.write_text(json.dumps(merged))
        os.replace(temp, cache)
    except OSError:
        with contextlib.suppress(OSError):
            temp.unlink()
