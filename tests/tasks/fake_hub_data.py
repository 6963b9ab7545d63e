"""A cache of `datasets` as a download would leave it, made of our own rows by `datasets` itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMMIT = "b2" * 20


def fill(
    cache: Path,
    name: str,
    config: str,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    commit: str = COMMIT,
) -> Path:
    """Put splits into a cache under a hub name; returns the folder with the tables."""
    import datasets

    source = cache / "source"
    source.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in splits.items():
        files[split] = str(source / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = datasets.load_dataset("json", data_files=files, cache_dir=str(cache / "made"))
    origin = Path(next(iter(made.values())).cache_files[0]["filename"]).parent
    space, last = name.split("/")
    snake = datasets.naming.camelcase_to_snakecase(last)
    folder = cache / f"{space}___{snake}" / config / "0.0.0" / commit
    shutil.copytree(origin, folder)
    for file in folder.glob("json-*.arrow"):
        file.rename(folder / file.name.replace("json-", f"{snake}-", 1))
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"config_name": config, "dataset_name": snake, "builder_name": "parquet"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for leftover in (source, cache / "made"):
        shutil.rmtree(leftover)
    return folder
