"""Makes the YAML files of this folder from a CSV of published numbers.

Columns: paper, table, model, task, method, tuning, setting, metric, value, std, steps, notes. The
text of every cell is kept as it is; run `python -m analysis.paper.make published.csv`.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import yaml

_COLUMNS = (
    "model", "task", "method", "tuning", "setting", "metric", "value", "std", "steps", "notes",
)  # fmt: skip


def yaml_files(text: str) -> dict[str, str]:
    """File name to YAML text, from the text of the CSV.

    Raises:
        ValueError: a row has no paper, or its value is no number.
    """
    papers: dict[str, dict[str, list[dict[str, str | float]]]] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        if not row.get("paper"):
            raise ValueError(f"line {number}: no paper")
        kept: dict[str, str | float] = {name: row[name] for name in _COLUMNS if row.get(name)}
        for name in ("value", "std"):
            if name in kept:
                kept[name] = float(kept[name])
        papers.setdefault(row["paper"], {}).setdefault(row["table"] or "-", []).append(kept)
    files = {}
    for paper, tables in papers.items():
        lines = [f"paper: {_flow(paper)}", "tables:"]
        for table, rows in tables.items():
            lines += [f"  - table: {_flow(table)}", "    rows:"]
            lines += [f"      - {_flow(row)}" for row in rows]
        files[f"{_slug(paper)}.yaml"] = "\n".join(lines) + "\n"
    return files


def _flow(value: object) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def _slug(paper: str) -> str:
    name = re.sub(r"\(.*?\)", "", paper).strip().lower()
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


if __name__ == "__main__":
    for file_name, content in yaml_files(Path(sys.argv[1]).read_text(encoding="utf-8")).items():
        (Path(__file__).parent / file_name).write_text(content, encoding="utf-8")
