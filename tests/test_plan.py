"""`zolab plan`: every published grid composes, sizes are right, nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers import expand
from tests import fake_hub
from zolab import compose, costs
from zolab.cli import main
from zolab.config import CONF_DIR
from zolab.verbs.plan import plan_rows, totals

PUBLISHED = sorted(
    path.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix()
    for path in (CONF_DIR / "experiment").glob("*/*.yaml")
)


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no data set is here, and nobody may be asked."""
    fake_hub.use(tmp_path / "hub", monkeypatch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_table_is_a_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cell for each combination of groups, all sized, though no file of theirs is here."""
    whole = expand.expand

    def one_of_each(*args: Any) -> list[expand.Point]:
        return list({point.composed: point for point in whole(*args)}.values())

    monkeypatch.setattr(expand, "expand", one_of_each)
    rows = plan_rows([f"experiment={name}"])
    assert rows
    for row in rows:
        assert (row.run_id, row.state) == (None, "planned")
        assert "not in the cache" in row.why_no_id
        assert row.memory_bytes > 1e8
        assert row.hours > 0
        assert 0 < row.kept_bytes <= row.disk_bytes


@pytest.mark.parametrize(
    "name", ["opt_350m", "roberta_large", "llama_7b", "qwen2.5_0.5b", "qwen3_0.6b", "phi_2"]
)
def test_weights_are_counted_as_transformers_makes_them(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    model = yaml.safe_load((CONF_DIR / "model" / f"{name}.yaml").read_text())
    kind = AutoModelForMaskedLM if model["kind"] == "masked" else AutoModelForCausalLM
    with torch.device("meta"):
        made = kind.from_config(AutoConfig.for_model(**model["shape"]))
    shape = costs.shape_of(model["shape"])
    assert shape.parameters == sum(p.numel() for p in made.parameters())


def cell(*overrides: str) -> dict[str, Any]:
    return compose.check(compose.compose(compose.prepare_overrides(overrides)))


SHAPE = costs.shape_of(yaml.safe_load((CONF_DIR / "model" / "opt_13b.yaml").read_text())["shape"])


def test_memory_of_the_published_thirteen_billion() -> None:
    """Table 22 of MeZO: 26 GB for MeZO at batch 1 and 400 tokens, 316 GB for Adam on four GPUs."""
    small = ("train.batch_size=1", "train.eval_batch_size=1")
    mezo = costs.memory_of(cell("model.dtype=float16", *small), SHAPE, 400)
    assert 25.5e9 < mezo.total < 27e9
    adamw = costs.memory_of(cell("optimizer=adamw", *small), SHAPE, 400)
    assert 4 * adamw.weights < adamw.total < 230e9
    lomo = costs.memory_of(cell("optimizer=lomo", *small), SHAPE, 400)
    assert lomo.weights < lomo.total < 1.2 * lomo.weights
    offload = costs.memory_of(
        cell("model.dtype=float16", "optimizer/placement=offload", *small), SHAPE, 400
    )
    assert offload.total < 0.2 * mezo.total
    assert offload.host == offload.host >= mezo.weights


@pytest.mark.parametrize(
    ("overrides", "forwards"),
    [
        ((), 2 * 800),
        (("optimizer=adamw",), 3 * 800),
        (("optimizer=mezo_nspsa", "optimizer.estimator.num_probes=4"), 8 * 800),
        (("optimizer=mezo_one_point",), 800),
        (("optimizer=zero_shot",), 0),
    ],
)
def test_forwards_are_counted_by_the_convention(overrides: tuple[str, ...], forwards: int) -> None:
    assert costs.work_of(cell(*overrides), 10).forwards == forwards


def test_done_cells_are_told_and_not_counted(tmp_path: Path, capsys) -> None:
    from zolab.run import run_dir

    small = ["task.num_train=16", "task.num_dev=8", "task.num_test=8", "train=smoke"]
    given = [*small, "tracking=local", f"run_root={tmp_path}"]
    done = compose.write_cell(cell(*given))
    run_dir(done)
    assert main(["plan", *given, "seed=0,1", "--json", "--tokens-per-second", "1000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in found["cells"]] == ["done", "planned"]
    assert found["cells"][0]["run_id"] == done.name
    assert (found["num_cells"], found["num_done"]) == (2, 1)
    assert found["hours"] == pytest.approx(found["cells"][1]["hours"])
    rows = plan_rows([*given, "seed=1"], flops=1e12)
    assert totals(rows)["hours"] == pytest.approx(found["hours"] * 1000 * 2 * 2_170_944 / 1e12, 0.1)
    assert main(["plan", *given, "seed=0,1"]) == 0
    assert "2 cells: 1 done, 1 planned" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line(capsys) -> None:
    assert main(["plan", "optimizer.lrr=1"]) == 2
    assert "did you mean 'lr'" in capsys.readouterr().err
    assert main(["plan", "--flops", "-3"]) == 2
    assert "expected a number > 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "Zoë's"])
def test_yaml_of_ones_own_is_planned(tmp_path: Path, capsys, name: str) -> None:
    folder = tmp_path / name
    (folder / "task").mkdir(parents=True)
    lines = ["defaults: [uci_sent, _self_]", "name: mine"]
    (folder / "task" / "mine.yaml").write_text("\n".join(lines))
    assert main(["plan", "--config-dir", str(folder), "task=mine", "seed=0,1"]) == 0
    assert "2 cells: 2 planned" in capsys.readouterr().out


def test_a_plan_loads_no_torch() -> None:
    code = "from zolab.verbs.plan import plan_rows; plan_rows(['seed=0,1'])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        cwd=CONF_DIR.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "transformers", "datasets"} & set(done.stdout.split())
