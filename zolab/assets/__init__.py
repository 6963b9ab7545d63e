"""The model and the task that ship inside the package, so that the first run needs no network."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: Embedded model whose tokenizer goes with models that are a shape and no more.
TOKENIZER = "opt-prompt-2m"


def _names(kind: str) -> list[str]:
    folder = _HERE / kind
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def models() -> list[str]:
    """Names that `model.path` accepts for a model inside the package."""
    return _names("models")


def tasks() -> list[str]:
    """Names that `task.path` accepts for a data set inside the package."""
    return _names("tasks")


def model_dir(name: str) -> Path:
    """Folder of the embedded model `name`; raises `KeyError` if there is none of that name."""
    if name not in models():
        raise KeyError(name)
    return _HERE / "models" / name


def task_dir(name: str) -> Path:
    """Folder of the embedded data set `name`; raises `KeyError` if there is none of that name."""
    if name not in tasks():
        raise KeyError(name)
    return _HERE / "tasks" / name


def locate_model(path: str) -> Path | None:
    """Where the files behind `model.path` lie: embedded name first, then a folder; else None."""
    if path in models():
        return model_dir(path)
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def locate_task(path: str) -> Path | None:
    """Where the files behind `task.path` lie: embedded name first, then a folder; else None."""
    if path in tasks():
        return task_dir(path)
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None
