"""Offload is `Paired` with its weights elsewhere: same losses, same coefficients, same bits."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.optim.race import Checking
from tests.optim.tiny import bits, lm_closure, opt, same_bits
from zolab.optim import (
    Adam,
    BlockWise,
    Conservative,
    Dense,
    FactorMomentum,
    Gaussian,
    Helene,
    LargeWeights,
    LayerMask,
    LazyLowRank,
    MeZOSVRG,
    Momentum,
    Offload,
    OneSided,
    Paired,
    Rademacher,
    RandomMask,
    Sign,
    SmallWeights,
    Subspace,
    TwoSided,
    ZeroOrder,
)
from zolab.optim.offload.blocks import NoBlocksError
from zolab.optim.offload.plan import PlanError
from zolab.optim.selfcheck import SelfCheckError, settle_placement

_SHAPE = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
_WIDE = {**_SHAPE, "intermediate_size": 24}
_GROUPED = {**_WIDE, "num_key_value_heads": 1, "pad_token_id": 0}
_OPT = {
    **{k: v for k, v in _SHAPE.items()}, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0,
}  # fmt: skip
#: (config class, arguments) of one tiny model a family.
FAMILIES = {
    "opt": ("OPTConfig", _OPT),
    "opt_untied": ("OPTConfig", {**_OPT, "tie_word_embeddings": False}),
    "llama": ("LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("MistralConfig", _GROUPED),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 8}),
    "gpt_neox": ("GPTNeoXConfig", _WIDE),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 48, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    ),
    "roberta": ("RobertaConfig", {**_WIDE, "pad_token_id": 1}),
}


def family(name: str, dtype: torch.dtype = torch.float32, layers: int = 2) -> nn.Module:
    import transformers

    config_name, arguments = FAMILIES[name]
    if layers != 2:
        arguments = {**arguments, "num_hidden_layers": layers}
    config = getattr(transformers, config_name)(**arguments)
    kind = "AutoModelForMaskedLM" if name == "roberta" else "AutoModelForCausalLM"
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, kind).from_config(config).to(dtype).eval()


def short(model: nn.Module):
    """Next-token loss of two short rows."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 48, (2, 6), generator=generator)

    def closure(copies: int = 1) -> list[float]:
        logits = model(input_ids=ids.repeat(copies, 1)).logits.float()
        return [
            nn.functional.cross_entropy(part[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
            for part in logits.chunk(copies)
        ]

    return closure


def make(model: nn.Module, placement, **options) -> ZeroOrder:
    options = {"lr": 1e-2, "eps": 1e-2, "seed": 3, **options}
    return ZeroOrder(model.named_parameters(), placement=placement, model=model, **options)


def run(optimizer: ZeroOrder, closure, steps: int, flush_every: int = 0) -> list:
    records = []
    for step in range(1, steps + 1):
        optimizer.step(closure)
        records.append(optimizer.last)
        if flush_every and step % flush_every == 0:
            optimizer.flush()
    with torch.inference_mode():
        records.append(closure(1))  # what waits is applied on the way of a plain forward, too
    optimizer.flush()
    return records


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mask", [Dense, SmallWeights], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_fifty_steps_equal_paired(name: str, mask, dtype: torch.dtype, tmp_path: Path) -> None:
    """One block in CPU memory, one on disk; losses, coefficients, weights."""
    seen = []
    for placement in (Paired(), Offload("cpu*1+disk", write_back_every=3, folder=str(tmp_path))):
        model = family(name, dtype)
        optimizer = make(model, placement, mask=mask(), weight_decay=0.01)
        seen.append((run(optimizer, short(model), 50), bits(model)))
    assert len({record.losses for record in seen[0][0][:-1]}) > 10  # it does move
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


VARIANTS = {
    "cpu": {"tier": "cpu"},
    "two_slots": {"tier": "cpu", "slots": 2},
    "disk": {"tier": "disk", "write_back_every": 2},
    "disk_journal": {"tier": "disk", "write_back_every": 0},
    "upload_only": {"tier": "cpu", "upload_only": True},
    "upload_only_disk": {"tier": "disk", "upload_only": True, "write_back_every": 2},
    "mixed": {"tier": "device*1+cpu*0+disk"},
}
MASKS = {
    "small": lambda: SmallWeights(0.75),
    "large": lambda: LargeWeights(0.5, "masked"),
    "random": lambda: RandomMask(0.5, "frozen"),
    "resampled": lambda: RandomMask(0.5, resample="step"),
    "refreshed": lambda: SmallWeights(0.5, refresh_every=3),
    "layers": lambda: LayerMask(0.5),
}
PARTS = {
    "one_sided": lambda: {"estimator": OneSided(2)},
    "probes": lambda: {"estimator": TwoSided(2), "direction": Rademacher()},
    "gauss8": lambda: {"direction": Gaussian("gauss8")},
    "lozo": lambda: {"direction": LazyLowRank(2, refresh_every=3), "rule": FactorMomentum()},
    "subspace": lambda: {"direction": Subspace(2, refresh_every=4)},
    "sign": lambda: {"rule": Sign("element")},
    "momentum": lambda: {"rule": Momentum(0.5, "replayed", 10)},
    "adam": lambda: {"rule": Adam(0.5, 0.5, history="replayed")},
}
STATEFUL = {
    "momentum": lambda: {"rule": Momentum(0.9)},
    "adam": lambda: {"rule": Adam()},
    "helene": lambda: {"rule": Helene(hessian_every=2)},
}


def compare(options, variant: dict, steps: int = 7) -> None:
    seen = []
    for placement in (Paired(), Offload(**variant)):
        model = family("llama")
        optimizer = make(model, placement, **options())
        seen.append((run(optimizer, short(model), steps), bits(model)))
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


@pytest.mark.parametrize("variant", ["cpu", "disk_journal", "upload_only_disk", "mixed"])
@pytest.mark.parametrize("mask", list(MASKS))
def test_every_mask_on_every_tier(mask: str, variant: str) -> None:
    compare(lambda: {"mask": MASKS[mask]()}, VARIANTS[variant], steps=5)


@pytest.mark.parametrize("variant", ["cpu", "disk", "upload_only"])
@pytest.mark.parametrize("part", list(PARTS))
def test_every_part(part: str, variant: str) -> None:
    compare(PARTS[part], VARIANTS[variant])


@pytest.mark.parametrize("part", list(STATEFUL))
def test_state_stays_beside_its_block(part: str) -> None:
    compare(STATEFUL[part], VARIANTS["cpu"])
    with pytest.raises(ValueError, match=r"placement\.tier: 2 blocks would be on disk.*a weight"):
        make(family("llama"), Offload("disk"), **STATEFUL[part]())


def test_conservative_steps_stream() -> None:
    seen = []
    for placement in (Paired(), Offload("cpu")):
        model = family("opt")
        optimizer = Conservative(
            model.named_parameters(), lr=1e-2, placement=placement, model=model
        )
        seen.append((run(optimizer, short(model), 5), bits(model)))
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


def test_frozen_weights_travel_too() -> None:
    seen = []
    for placement in (Paired(), Offload("cpu*1+disk", write_back_every=2)):
        model = family("opt")
        for name, param in model.named_parameters():
            param.requires_grad_("q_proj" in name)
        optimizer = make(model, placement)
        seen.append((run(optimizer, short(model), 5), bits(model)))
        if isinstance(placement, Offload):
            stored = sum(seat.layout.trained_size for seat in placement.pipeline.seats)
            assert 0 < stored < sum(seat.layout.size for seat in placement.pipeline.seats)
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


# -- flush, replay, load ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cpu", "disk_journal", "upload_only"])
def test_flushing_changes_no_bit(variant: str) -> None:
    finals = []
    for every in (0, 1, 3):
        model = family("qwen3")
        optimizer = make(model, Offload(**VARIANTS[variant]), mask=SmallWeights(0.5))
        run(optimizer, short(model), 7, every)
        finals.append(bits(model))
    assert same_bits(finals[0], finals[1])
    assert same_bits(finals[0], finals[2])


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_replay_equals_live(variant: str) -> None:
    """Rows of an in-memory run, replayed into an offloaded model, which goes on from there."""
    model, twin = family("opt"), family("opt")
    live = make(model, Paired(), mask=SmallWeights(0.5))
    records = run(live, short(model), 9)[:-1]
    other = make(twin, Offload(**VARIANTS[variant]), mask=SmallWeights(0.5))
    for record in records:
        other.replay(record.step, record.lr, record.coefficients)
    assert other.step(short(twin)) == live.step(short(model))
    other.flush()
    assert same_bits(bits(model), bits(twin))


@pytest.mark.parametrize("variant", ["cpu", "disk", "mixed"])
def test_weights_can_be_replaced(variant: str) -> None:
    model = family("opt")
    placement = Offload(**VARIANTS[variant])
    optimizer = make(model, placement)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = short(model)(1)
    run(optimizer, short(model), 3)
    optimizer.step(short(model))  # leaves an update that waits
    placement.load_weights(dict(model.named_parameters()), before)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert short(model)(1) == first


def test_generation_streams() -> None:
    model, twin = family("gpt2"), family("gpt2")
    placement = Offload("disk", write_back_every=0)
    optimizer = make(twin, placement)
    ids = torch.tensor([[5, 6, 7]])
    for each, used in ((model, make(model, Paired())), (twin, optimizer)):
        run(used, short(each), 3)
        used.step(short(each))
    moved = placement.pipeline.uploaded
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    got = [each.generate(ids, **options).tolist() for each in (model, twin)]
    assert got[0] == got[1]
    assert placement.pipeline.uploaded > moved


def test_an_error_in_a_forward_loses_nothing() -> None:
    seen = []
    for placement in (Paired(), Offload("cpu")):
        model = family("llama")
        optimizer, closure = make(model, placement), short(model)
        run(optimizer, closure, 2)
        optimizer.step(closure)
        hook = model.model.layers[1].mlp.register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            optimizer.step(closure)
        hook.remove()
        seen.append((run(optimizer, closure, 3), bits(model)))
    assert seen[0][0] == seen[1][0]
    assert same_bits(seen[0][1], seen[1][1])


def _fail(module: nn.Module, args: tuple) -> None:
    raise RuntimeError("on purpose")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    model = family("opt")
    optimizer = make(model, Offload("disk", folder=str(tmp_path)))
    run(optimizer, short(model), 3)
    assert len(list(tmp_path.iterdir())) == 2  # one file a block, old ones gone
    expected = short(model)(1)
    optimizer.use_placement(Paired())
    assert short(model)(1) == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- order of the lanes ----------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("variant", ["cpu", "disk", "upload_only_disk", "mixed"])
def test_marks_order_every_use_of_a_buffer(variant: str, slots: int) -> None:
    model = family("llama", layers=4)
    placement = Offload(**{**VARIANTS[variant], "slots": slots})
    placement.streams = Checking()
    optimizer = make(model, placement, estimator=TwoSided(2))
    run(optimizer, short(model), 5, flush_every=2)
    assert placement.streams.pieces > 50
    assert placement.streams.faults == []


def test_a_missing_mark_is_noticed() -> None:
    """The checker itself: without the wait of the upload for the slot, it objects."""
    model = family("llama")
    placement = Offload("cpu", slots=2)
    placement.streams = checking = Checking()
    optimizer = make(model, placement)
    wait = checking.wait
    checking.wait = lambda lane, mark: None if lane == "upload" else wait(lane, mark)
    run(optimizer, short(model), 2)
    assert any("still being" in fault for fault in checking.faults)


def test_each_block_moves_once_a_forward() -> None:
    model = family("llama", layers=4)
    placement = Offload("cpu")
    optimizer = make(model, placement)
    size = sum(seat.layout.size for seat in placement.pipeline.seats)
    trained = sum(seat.layout.trained_size for seat in placement.pipeline.seats)
    for step in range(1, 5):
        optimizer.step(short(model))
        assert placement.pipeline.uploaded == step * size
        assert placement.pipeline.downloaded == (step - 1) * trained
    only = Offload("cpu", upload_only=True)
    optimizer = make(copy.deepcopy(family("llama")), only)
    run(optimizer, short(optimizer._model), 4)
    assert only.pipeline.downloaded == 0


# -- refusals --------------------------------------------------------------------------------------


def test_what_cannot_go_together_is_refused() -> None:
    model = family("opt")
    for method in (BlockWise, MeZOSVRG):
        with pytest.raises(ValueError, match=r"placement offload.*"):
            method(model.named_parameters(), placement=Offload(), model=model)
    with pytest.raises(ValueError, match="needs model="):
        ZeroOrder(model.named_parameters(), placement=Offload())
    layer = nn.Linear(2, 2)
    with pytest.raises(NoBlocksError, match="Linear has no list of layers"):
        ZeroOrder(layer.named_parameters(), placement=Offload(), model=layer)
    for options, said in (
        ({"slots": 1}, r"placement\.slots = 1: expected at least 2"),
        ({"write_back_every": -1}, r"placement\.write_back_every = -1"),
        ({"transfer": "int4"}, r"placement\.transfer = 'int4': expected one of none, float16"),
    ):
        with pytest.raises(ValueError, match=said):
            Offload(**options)
    with pytest.raises(PlanError, match=r"the numbers make 3 blocks, the model has 2"):
        make(model, Offload("cpu*1+disk*2"))


def test_a_model_that_cannot_be_paired_is_refused() -> None:
    """There is nothing to fall back on: in-place needs the weights on the device."""
    model = family("opt")
    model.model.decoder.layers[1].fc1.register_forward_pre_hook(lambda m, a: (a[0].flip(0),))
    model.model.decoder.layers[1].fc1.register_forward_hook(lambda m, a, out: out.flip(0))
    optimizer = make(model, Offload("cpu"))
    with pytest.raises(SelfCheckError, match=r"placement offload.*a doubled batch gives loss"):
        settle_placement(optimizer, short(model))


def test_a_fit_model_passes_the_self_check() -> None:
    model = opt()
    optimizer = make(model, Offload("cpu*1+disk"))
    start = bits(model)
    settle_placement(optimizer, lm_closure(model))
    assert optimizer.placement.name == "offload"
    assert same_bits(bits(model), start)
