"""The pieces of offloading by themselves: plan, stores, rounding on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.optim.test_offload import family, make, run, short
from tests.optim.tiny import bits, same_bits
from zolab.offloading import plan_shape
from zolab.optim import LargeWeights, Offload, Paired, SmallWeights
from zolab.optim.offload import Free, PlanError, plan_tiers
from zolab.optim.offload import transfer as transfers
from zolab.optim.offload.blocks import Layout, find_blocks
from zolab.optim.offload.memory import free_disk, free_host
from zolab.optim.offload.stores import FileChangedError, MappedStore, backing_files
from zolab.optim.offload.transfer import Codec

GB = 10**9


# -- plan ------------------------------------------------------------------------------------------


def test_the_plan_fills_the_fastest_tier_first() -> None:
    free = Free(device=10 * GB, host=20 * GB, disk=100 * GB)
    plan = plan_tiers([GB] * 40, 2 * GB, free)
    # 8.5 GB of the device: 2 resident, 3 slots, 3 blocks; 19 of the host; the rest on disk.
    assert [plan.count(tier) for tier in ("device", "cpu", "disk")] == [3, 19, 18]
    assert plan.tiers == ("device",) * 3 + ("cpu",) * 19 + ("disk",) * 18
    assert plan.needs == {"device": 8 * GB, "host": 19 * GB, "disk": 19 * GB}
    assert "40 blocks of 40.0 GB in all: 3 on device, 19 on cpu, 18 on disk" in str(plan)
    assert "host: needs 19.0 GB of 20.0 GB free" in plan.lines()


def test_slots_are_not_needed_where_nothing_moves() -> None:
    plan = plan_tiers([GB] * 4, GB, Free(6 * GB, 0, 0))
    assert plan.tiers == ("device",) * 4
    assert plan.needs["device"] == 5 * GB


def test_where_the_device_is_the_cpu_blocks_and_slots_share_its_memory() -> None:
    plan = plan_tiers([GB] * 10, GB, Free(None, 10 * GB, 100 * GB))
    assert [plan.count(tier) for tier in ("device", "cpu", "disk")] == [0, 5, 5]
    assert plan.needs == {"device": 0, "host": 9 * GB, "disk": 6 * GB}


def test_state_and_staging_count() -> None:
    free = Free(4 * GB, 100 * GB, 100 * GB)
    plan = plan_tiers([GB] * 4, 0, free, tier="cpu*2+disk", state=2.0, staging=GB, packed=10**8)
    assert plan.needs["host"] == 2 * GB + 4 * GB + 3 * (GB + 10**8)
    assert plan.needs["device"] == 3 * (GB + 10**8)


@pytest.mark.parametrize(
    ("tier", "free", "said"),
    [
        ("cpu", Free(9 * GB, 3 * GB, 0), "CPU memory is too small: 4.0 GB needed, 3.0 GB free"),
        ("disk", Free(9 * GB, 0, GB), "the disk of placement.folder is too small: 5.0 GB needed"),
        ("auto", Free(2 * GB, 9 * GB, 0), "device memory is too small: 3.0 GB needed, 2.0 GB"),
        ("auto", Free(4 * GB, GB, GB), "the disk of placement.folder is too small"),
        ("ram", Free(9 * GB, GB, GB), "'ram': expected auto, cpu, disk, or numbers"),
        ("cpu+disk", Free(9 * GB, GB, GB), "the numbers make 0 blocks, the model has 4"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_figures(tier: str, free: Free, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_tiers([GB] * 4, 0, free, tier=tier)


def test_free_memory_is_measured(tmp_path: Path) -> None:
    assert 0 < free_host() < 1 << 50
    assert free_disk(tmp_path / "not" / "there") == pytest.approx(free_disk(tmp_path), rel=0.01)


def test_a_shape_is_planned_without_its_weights(tmp_path: Path) -> None:
    from transformers import OPTConfig

    shape = OPTConfig(num_hidden_layers=2)
    plan = plan_shape(shape, "causal", "bfloat16", "cpu", tmp_path, tier="disk", slots=2)
    assert plan.tiers == ("disk", "disk")
    # 7.1M weights a layer (12 h^2 + 13 h, h = 768), 40.2M outside, two bytes each.
    assert plan.blocks == pytest.approx(2 * 2 * (12 * 768**2 + 13 * 768), rel=1e-3)
    assert plan.resident == pytest.approx(2 * (50272 * 768 + 2050 * 768 + 2 * 768), rel=1e-3)
    assert plan.needs["host"] == plan.resident + 2 * plan.blocks // 2


# -- blocks and stores -----------------------------------------------------------------------------


def test_blocks_are_the_outermost_lists_of_layers() -> None:
    assert [b.name for b in find_blocks(family("opt"))] == [
        "model.decoder.layers.0",
        "model.decoder.layers.1",
    ]
    nested = nn.Module()
    nested.layers = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2)]) for _ in range(3))
    nested.empty = nn.ModuleList([nn.ReLU()])
    nested.layers[2][0].weight = nested.layers[0][0].weight  # shared: belongs to no block
    blocks = find_blocks(nested)
    assert [b.name for b in blocks] == ["layers.0", "layers.1", "layers.2"]
    assert [len(b.params) for b in blocks] == [1, 2, 1]


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(5, 7, generator=generator),
        torch.randn(3, generator=generator).to(torch.bfloat16),
        torch.randn((), generator=generator, dtype=torch.float64),
    ]


def test_a_mapped_store_is_a_safetensors_file(tmp_path: Path) -> None:
    weights = tensors()
    layout = Layout(weights, 3)
    store = MappedStore("block", layout, weights, tmp_path, every=2)
    (path,) = tmp_path.iterdir()
    assert backing_files(store.views) == [str(path)] * 3
    saved = load_file(path)
    for i, (weight, view) in enumerate(zip(weights, store.views, strict=True)):
        assert torch.equal(weight, view)
        assert torch.equal(weight, saved[f"{i:04d}"])
    assert [store.due(n) for n in (0, 1, 2)] == [False, False, True]
    flat = torch.zeros(layout.size, dtype=torch.uint8)
    old = store.views
    store.take(flat)
    assert not any(view.any() for view in store.views)
    assert torch.equal(old[0], weights[0])  # who still looks at the old file sees the old weights
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_cut_short_under_way_is_told_with_the_sizes(tmp_path: Path) -> None:
    model = family("opt")
    optimizer = make(model, Offload("disk", folder=str(tmp_path), write_back_every=0))
    optimizer.step(short(model))
    path = max(tmp_path.iterdir())
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with pytest.raises(FileChangedError, match=f"{path}: {size - 100} bytes, but {size} when"):
        optimizer.step(short(model))
    os.truncate(path, size)
    with pytest.raises(FileChangedError, match="written to while the run reads its weights"):
        optimizer.step(short(model))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zolab.optim.offload.memory.free_disk", lambda folder: 1000)
    with pytest.raises(PlanError, match=r"the disk of placement\.folder is too small: .* 1\.0 kB"):
        make(family("opt"), Offload("disk", folder=str(tmp_path)))
    assert not list(tmp_path.iterdir())


# -- rounding on the way ---------------------------------------------------------------------------

#: form -> largest relative error of weights with a normal distribution.
FORMS = {"float16": 3e-4, "bfloat16": 2.5e-3, "float8": 3.5e-2, "int8": 8e-3}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("shape", [(64, 100), (3, 5), (1, 128)])
def test_rounding_is_as_fine_as_the_form_allows(form: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [0.02 * torch.randn(shape, generator=generator), torch.ones(7) / 3]
    weights[0][0, 0] = 0.0
    codec = Codec(form, Layout(weights, 2))
    packed = torch.zeros(codec.size, dtype=torch.uint8)
    back = [torch.empty_like(w) for w in weights]
    codec.encode(weights, packed)
    codec.decode(packed, back)
    assert torch.equal(back[1], weights[1])  # vectors travel as they are
    assert back[0][0, 0] == 0.0
    error = (back[0] - weights[0]).norm() / weights[0].norm()
    assert 0 < error < FORMS[form]
    if shape == (64, 100):
        assert codec.size < 0.6 * sum(w.numel() * 4 for w in weights)


def test_zeros_and_sixteen_bit_masters_survive() -> None:
    weights = [torch.zeros(4, 200, dtype=torch.bfloat16)]
    for form in FORMS:
        codec = Codec(form, Layout(weights, 1))
        packed = torch.ones(codec.size, dtype=torch.uint8)
        back = [torch.ones_like(weights[0])]
        codec.encode(weights, packed)
        codec.decode(packed, back)
        assert not back[0].any()


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("tier", ["cpu", "disk"])
def test_the_master_stays_exact(form: str, tier: str) -> None:
    """Coefficients of rounded losses, but the weights are those an exact replay of them makes."""
    model, twin = family("llama"), family("llama")
    placement = Offload(tier, transfer=form, write_back_every=2)
    optimizer = make(model, placement, mask=SmallWeights(0.5))
    records = run(optimizer, short(model), 6, flush_every=4)[:-1]
    exact = make(twin, Paired(), mask=SmallWeights(0.5))
    for record in records:
        exact.replay(record.step, record.lr, record.coefficients)
    assert same_bits(bits(model), bits(twin))
    assert placement.pipeline.downloaded == 0
    assert 0 < placement.transfer_error.relative < 1.5 * FORMS[form]
    moved = placement.pipeline.uploaded
    whole = sum(seat.layout.size for seat in placement.pipeline.seats)
    assert moved < 0.95 * whole * (6 + 1)


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_flushing_changes_no_bit_of_rounded_runs(form: str) -> None:
    seen = []
    for every in (0, 1):
        model = family("opt")
        optimizer = make(model, Offload("cpu", transfer=form), mask=LargeWeights(0.5))
        seen.append((run(optimizer, short(model), 5, every), bits(model)))
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


def test_eight_bit_floats_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "has_float8", lambda device: False)
    with pytest.raises(ValueError, match=r"transfer = 'float8': cpu has no 8-bit floats.*use int8"):
        make(family("opt"), Offload("cpu", transfer="float8"))
