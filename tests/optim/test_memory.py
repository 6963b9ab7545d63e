"""Methods hold what they declare, to the byte; their peaks are in tests/test_benchmarks.py."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.optim.methods import METHODS, build, closure_of, pairs, steps
from tests.optim.tiny import small_lm
from zolab.optim import MeZO, Paired, PerLayer, SparseMeZO, SubZero, ZeroOrder, native
from zolab.optim import engine as engine_module
from zolab.optim.memory import Memory

DOCS = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def size(tensors: Iterable[object]) -> int:
    held = [t for t in tensors if isinstance(t, Tensor) and t.dim() > 0]
    return sum(t.numel() * t.element_size() for t in held)


def held(optimizer: ZeroOrder) -> int:
    """Bytes of all that outlives a step, looked up where it is kept."""
    parts = getattr(optimizer, "blocks", None) or [optimizer]
    total = size(getattr(optimizer, "_anchor", {}).values())
    for part in parts:
        engine = part.engine
        total += size(engine._held.values())
        total += size(getattr(part.direction, "_bases", {}).values())
        total += sum(size(z.values()) for z in getattr(engine.source, "_store", {}).values())
        total += size(getattr(engine.source, "_plan", None) or ())
        if part.rule.reach == 1:  # what is made anew is kept as seeds and scalars
            total += size(part.rule.state().values())
    return total


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize(("placement", "name"), pairs(METHODS))
def test_state_is_what_is_held(placement, name: str, small: bool, monkeypatch) -> None:
    if not small:  # as with models of more than 8 M weights, where no z is kept
        monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    model = small_lm()
    optimizer = build(name, model, placement)
    declared = optimizer.memory()
    steps(optimizer, closure_of(name, model), 5)  # over the refreshes of bases and anchors
    assert held(optimizer) == declared.state


def test_a_layer_at_a_time_takes_the_activations_of_both_signs_or_of_one() -> None:
    model = small_lm()
    made = [MeZO(model.named_parameters(), placement=p(), model=model) for p in (Paired, PerLayer)]
    both, one = (optimizer.memory() for optimizer in made)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_head]
    vectors = 2 * 4 * sum(p.numel() for p in model.parameters() if p.dim() == 1)
    if native.available():  # all vectors when the evaluation begins
        held = 2 * 4 * max(m.weight.numel() for m in layers) + vectors
    else:
        held = 2 * 4 * max(sum(p.numel() for p in m.parameters()) for m in layers)
    assert (both.copies, one.copies) == (2, 1)
    assert both.probing == one.probing == held
    assert both.scratch(10**9) == 10**9 + held
    assert Memory(0, 1, 0, 500).scratch(400) == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_and_bases_are_counted_by_dtype(dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    model = small_lm().to(dtype)
    masked = sum(-(-p.numel() // 8) for p in model.parameters() if p.dim() > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the walk rounds 16-bit weights
        sparse = SparseMeZO(model.named_parameters(), eps=0.1)
        subspace = SubZero(model.named_parameters(), eps=0.1, rank=4, model=model)
    assert sparse.memory().state == masked
    sides = [sum(subspace.direction.shapes[i.pid]) for i in subspace.infos if not i.is_vector]
    assert subspace.memory().state == 4 * 4 * sum(sides)


def test_the_state_in_the_docs_is_what_is_declared(monkeypatch) -> None:
    """The column `state`, read as multiples of the weights."""
    monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    model = small_lm()
    weights = 4 * sum(p.numel() for p in model.parameters())
    rows = [line.split("|")[1:-1] for line in DOCS.splitlines() if line.startswith("| ")]
    table = [row for row in rows if len(row) == 7][2:]
    found = {}
    for row in table:
        maker = re.search(r"`(\w+)", row[2]).group(1)
        for name, method in METHODS.items():
            resampled = "resample" in row[2]
            if method.make.__name__ == maker and resampled == ("resample" in method.options):
                found[name] = row[6].strip()
    assert set(found) >= set(METHODS) - {"forward_grad"}
    for name, said in found.items():
        declared = build(name, model, Paired).memory().state
        multiple = re.match(r"(\d)x", said)
        if multiple:
            assert declared == int(multiple.group(1)) * weights, name
        elif said.startswith("1 bit"):
            assert 0 < declared < weights / 30, name
        elif said in ("none", "last loss", "seeds, scalars"):
            assert declared == 0, name
        else:
            assert said.endswith("r a matrix"), said
            assert 0 < declared < weights, name
