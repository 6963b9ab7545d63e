"""`model.device_map`: the same numbers however a model is laid out.

One CPU holds all parts here, through the hooks that accelerate puts around each module of a model
that spans devices. What this cannot show is a copy between two CUDA devices.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.optim import tiny
from tests.test_resume import exact_rows, journal_text, prepare
from zolab import compose, ledger
from zolab.checkpoint import weights_hash
from zolab.optim import Gaussian, Rademacher, ZeroOrder, placements
from zolab.run import run_dir

#: A part of the model for each "device".
SPLIT = {
    "model.decoder.embed_tokens": "cpu",
    "model.decoder.embed_positions": "cpu",
    "model.decoder.layers.0": "cpu",
    "model.decoder.layers.1": "cpu",
    "model.decoder.final_layer_norm": "cpu",
    "lm_head": "cpu",
}


def after_steps(placement: placements.Placement, split: bool) -> tuple[str, list]:
    """Weights and losses after five steps, in one piece or with a hook around every module."""
    model = tiny.opt()
    if split:
        accelerate = pytest.importorskip("accelerate")
        model = accelerate.dispatch_model(model, SPLIT, main_device="cpu", force_hooks=True)
        hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
        assert {"model.decoder.layers.0.self_attn.q_proj", "lm_head"} <= hooked
    optimizer = ZeroOrder(
        model.named_parameters(), lr=1e-3, eps=1e-3, seed=3, model=model, placement=placement
    )
    closure, losses = tiny.lm_closure(model), []
    for _ in range(5):
        optimizer.step(closure)
        losses.append(optimizer.last.losses)
    optimizer.flush()
    return weights_hash(model), losses


@pytest.mark.parametrize("kind", [placements.InPlace, placements.Paired, placements.PerLayer])
def test_hooks_around_every_module_change_no_bit(kind: type[placements.Placement]) -> None:
    assert after_steps(kind(), split=True) == after_steps(kind(), split=False)


@pytest.mark.parametrize("direction", [Gaussian(), Rademacher()], ids=lambda d: type(d).__name__)
def test_a_shard_of_a_parameter_sees_its_part_of_z(direction: Gaussian) -> None:
    """Noise is keyed by the element's place in the whole parameter."""
    whole = direction.z(7, 1234, 0, 1000, torch.device("cpu"))
    cuts = [0, 1, 6, 333, 334, 800, 1000]
    for start, end in itertools.pairwise(cuts):
        part = direction.z(7, 1234, start, end - start, torch.device("cpu"))
        assert torch.equal(part, whole[start:end])


def test_a_cell_with_a_device_map_is_the_cell_without(tmp_path: Path) -> None:
    """The layout is no part of a cell's identity, and of none of its numbers."""
    plain = prepare(tmp_path / "plain", "train.steps=6")
    mapped = prepare(tmp_path / "mapped", "train.steps=6", "model.device_map=auto")
    assert plain.name == mapped.name
    assert compose.read_cell(mapped)["model"]["device_map"] == "auto"
    hashes = [run_dir(folder)["weights_hash"] for folder in (plain, mapped)]
    assert hashes[0] == hashes[1]
    assert journal_text(plain) == journal_text(mapped)
    assert exact_rows(plain) == exact_rows(mapped)
    assert ledger.state_of(mapped) == "done"
