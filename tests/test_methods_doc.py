"""docs/methods.md: its example runs as written, its table names what exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import zolab.optim
from tests.optim.methods import describe
from tests.optim.tiny import lm_closure, opt
from zolab import compose
from zolab.config import CONF_DIR

TEXT = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL).group(1)


def test_the_example_is_short_runs_and_equals_its_yaml(tmp_path: Path) -> None:
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    space: dict = {}
    exec(code, space)  # it is the documentation's own code
    model = opt()
    optimizer = space["LayerLOZO"](model.named_parameters(), lr=1e-2, seed=1, model=model)
    before = lm_closure(model)(1)[0]
    for _ in range(30):
        optimizer.step(lm_closure(model))
    assert optimizer.last.num_forwards == 4
    optimizer.flush()
    assert lm_closure(model)(1)[0] < before - 0.02
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "layer_lozo.yaml").write_text(block("yaml"))
    search = f"hydra.searchpath=[file://{tmp_path}]"
    cell = compose.check(compose.compose(["experiment=layer_lozo", search]))
    mask = compose.build(cell["sparsity"])
    parameters = list(model.named_parameters())
    built = compose.build(cell["optimizer"], parameters, mask=mask, model=model, seed=1)
    assert describe(built) == describe(optimizer)


def test_the_table_names_what_exists() -> None:
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("| ")]
    table = [row for row in rows if len(row) == 7][2:]
    assert len(table) > 20
    for _, _, python, yaml, *_ in table:
        assert hasattr(zolab.optim, re.search(r"`(\w+)", python).group(1)), python
        for group, name in re.findall(r"(optimizer|sparsity)=(\w+)", yaml):
            assert (CONF_DIR / group / f"{name}.yaml").exists(), yaml


@pytest.mark.parametrize("name", [*zolab.optim.methods.__all__, "MeZOSVRG"])
def test_a_method_is_told_on_one_screen(name: str) -> None:
    """Paper, composition, forwards, state and YAML, in the docstring and in 40 lines of source."""
    method = getattr(zolab.optim, name)
    text = method.__doc__
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert "forward" in text
    assert re.search(r"[Ss]tate", text)
    for group, choice in re.findall(r"(optimizer|sparsity)=(\w+)", text):
        assert (CONF_DIR / group / f"{choice}.yaml").exists(), choice
    if name != "MeZOSVRG":
        assert len(inspect.getsource(method).splitlines()) <= 40
        assert "YAML: optimizer=" in text
        assert " × " in text
