"""Reports of real sweeps from run folders and from their wandb files alone, compared byte by byte.

    python -m tests.analysis.same_bytes RUNS [RUNS …] [-- OPTION OF ZOLAB REPORT …]

For every folder of runs: the report from the run folders, and the report from a folder that holds
nothing but links to their `.wandb` files. Nothing is written below RUNS. Status 1 if a file of any
report differs.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from analysis.cli import report
from analysis.reading.folders import run_folders
from analysis.reading.offline import wandb_files


def reports(runs: Path, scratch: Path, options: list[str]) -> dict[str, dict[str, bytes]]:
    """Source to the files of its report."""
    folders, logs = scratch / "folders", scratch / "logs"
    folders.mkdir()
    logs.mkdir()
    for folder in run_folders(runs):
        (folders / folder.name).symlink_to(folder.resolve())
    for number, path in enumerate(wandb_files(runs, [])):
        (logs / f"{number:05d}").mkdir()
        (logs / f"{number:05d}" / path.name).symlink_to(path)
    found = {}
    for source, root in (("local", folders), ("wandb", logs)):
        out = scratch / f"from {source}"
        with contextlib.redirect_stdout(io.StringIO()):
            report([str(root), "--out", str(out), "--source", source, *options])
        found[source] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    return found


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    status = 0
    for runs in map(Path, arguments[:split]):
        with tempfile.TemporaryDirectory() as scratch:
            local, wandb = reports(runs, Path(scratch), arguments[split + 1 :]).values()
        differ = [name for name in sorted({*local, *wandb}) if local.get(name) != wandb.get(name)]
        size = sum(map(len, local.values()))
        said = f"DIFFERENT: {', '.join(differ)}" if differ else "the same"
        print(f"{runs}: {len(run_folders(runs))} runs, {len(local)} files, {size:,} bytes: {said}")
        status |= bool(differ)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
