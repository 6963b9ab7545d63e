"""Import floors: a file imports from its own floor or below; heavy packages stay at home."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Module prefix -> floor; the longest prefix that fits decides.
FLOORS = {
    "zolab": 0,
    "zolab.errors": -1,
    "zolab.clib": -1,
    "zolab.ledger": -1,
    "zolab.process": -1,
    "zolab.assets": -1,
    "zolab.tracking.schema": -1,
    "zolab.tracking.health": -1,
    "zolab.config": -1,  # torch-free and hydra-free schemas
    "zolab.optim": 0,
    "zolab.tasks": 1,
    "zolab.models": 1,
    "zolab.data": 1,
    "zolab.objectives": 1,
    "zolab.integrations": 1,
    "zolab.evaluate": 2,
    "zolab.prepare": 2,
    "zolab.taken": 2,
    "zolab.tally": 2,
    "zolab.train": 2,
    "zolab.job": 2,
    "zolab.learner": 2,
    "zolab.watch": 2,
    "zolab.baselines": 2,
    "zolab.journal": 2,
    "zolab.checkpoint": 2,
    "zolab.memory": 2,
    "zolab.progress": 2,
    "zolab.environment": 2,
    "zolab.parallel": 2,
    "zolab.tracking": 2,
    "zolab.compose": 3,
    "zolab.run": 3,
    "zolab.begin": 3,
    "zolab.origin": 3,
    "zolab.verbs": 3,
    "zolab.bench": 3,
    "zolab.verbs.plan": 6,  # as cli: composes a sweep without running it
    "zolab.costs": -1,
    "zolab.offloading": 2,
    "zolab.__main__": 6,
    "zolab.cli": 6,  # the one file that sees everything, inside its verbs
    "launchers": 4,
    "hydra_plugins": 4,
    "analysis": 5,
}
#: What analysis and launchers may use of zolab besides floor -1.
ALLOWED = {
    "analysis": {"zolab.tracking.wandb_file"},
    "launchers": {
        *("zolab.run", "zolab.compose", "zolab.compose.repository", "zolab.verbs.common"),
    },
}
#: package -> module prefixes that may import it.
HOMES = {
    "hydra": ("zolab.compose", "zolab.cli", "zolab.begin", "launchers", "hydra_plugins"),
    "omegaconf": ("zolab.compose", "zolab.cli", "launchers", "hydra_plugins"),
    "wandb": ("zolab.tracking.wandb", "analysis.reading.online"),
    "wandb_workspaces": ("analysis.publish",),
    "transformers": ("zolab.models", "zolab.integrations"),
    "peft": ("zolab.models.tuning",),
    "datasets": ("zolab.data",),
    "triton": ("zolab.optim.triton",),
    "submitit": ("launchers",),
    "polars": ("analysis",),
    "plotly": ("analysis",),
    "matplotlib": ("analysis",),
    "dash": ("analysis.dashboard",),
    "flask": ("analysis.dashboard",),
}


def modules() -> dict[str, Path]:
    out = {}
    for top in ("zolab", "launchers", "analysis"):
        for path in (ROOT / top).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if parts[:2] == ["launchers", "hydra_plugins"]:
                parts = parts[1:]
            out[".".join(parts)] = path
    return out


def floor(name: str) -> int | None:
    fits = [p for p in FLOORS if name == p or name.startswith(p + ".")]
    return FLOORS[max(fits, key=len)] if fits else None


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            # `from package import module` imports the module as well.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_floors(name: str) -> None:
    mine = floor(name)
    assert mine is not None
    for target in imports(MODULES[name]):
        package = target if target in MODULES else target.rpartition(".")[0]
        if package not in MODULES or package == "zolab":
            continue
        theirs = floor(package)
        assert theirs <= mine, f"{name} (floor {mine}) imports {package} (floor {theirs})"
        top = name.split(".")[0]
        if top in ALLOWED and package.startswith("zolab") and theirs >= 0:
            assert package in ALLOWED[top], f"{name} may not import {package}"


@pytest.mark.parametrize("package", sorted(HOMES))
def test_packages_stay_at_home(package: str) -> None:
    for name, path in MODULES.items():
        if any(t == package or t.startswith(package + ".") for t in imports(path)):
            assert name.startswith(HOMES[package]), f"{name} imports {package}"


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.split(".")[0] for name in done.stdout.split()}


def test_optim_needs_torch_alone() -> None:
    loaded = loaded_after("import zolab.optim")
    assert "torch" in loaded
    assert not loaded & {"transformers", "hydra", "omegaconf", "datasets", "wandb", "yaml", "peft"}


def test_a_login_node_loads_no_torch() -> None:
    loaded = loaded_after("import launchers.sweep, launchers.slurm, zolab.compose, zolab.cli")
    assert not loaded & {"torch", "transformers", "datasets", "wandb"}


def test_local_rows_are_read_without_what_takes_long_to_import() -> None:
    form = "zolab.config.rows.RowForm(('sentence',), 'label', 2)"
    read = f"zolab.data.FileTable(assets.locate_task('uci_sent') / 'train.jsonl', {form}).rows([0])"
    loaded = loaded_after(f"import zolab.run, zolab.data; from zolab import assets; {read}")
    assert "torch" in loaded
    assert not loaded & {"datasets", "pyarrow", "pandas", "wandb", "peft", "scipy"}


def test_help_is_quick() -> None:
    """At most 1.5 s, best of three on a busy machine."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "zolab", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0
        assert "usage: zolab" in done.stdout
    assert min(times) <= 1.5
