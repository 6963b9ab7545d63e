"""Tuning modes: what trains, what is added, one pass of the frozen base for both signs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import families
from tests.test_families import section
from zolab.errors import UserError
from zolab.models.load import LoadedModel, load_model
from zolab.models.tuning import KINDS
from zolab.models.tuning.tensor_train import TensorTrainLinear, dimensions
from zolab.objectives import BatchLoss, CausalScorer, Encoder
from zolab.optim import InPlace, Paired, ZeroOrder
from zolab.optim.parameters import ADAPTER_BASE
from zolab.optim.placements import Placement
from zolab.optim.selfcheck import check_paired, check_reads
from zolab.tasks import Example

EXAMPLES = [
    Example("the movie was a joy . It was", (" terrible", " great"), 1),
    Example("dull , slow and far too long for what it has to say . It was", (" bad", " great"), 0),
    Example("Yes or No ? Maybe", (" the plot", " the cast is good"), 1),
]
#: Largest difference between losses of a doubled batch and of two passes: products over more rows
#: may add up in another order.
BOUND = 5e-7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("opt", "llama", "gpt2", "bert", "mistral")
    return {name: families.save(name, tmp_path_factory.mktemp(name)) for name in names}


def load(folders: dict[str, Path], name: str, kind: str, **options: Any) -> LoadedModel:
    return load_model(section(folders[name], name, tuning={"kind": kind, **options}), 0)


def closure_of(loaded: LoadedModel) -> BatchLoss:
    scorer = CausalScorer(loaded.model, loaded.tokenizer.pad_token_id, None, loaded.max_length)
    return BatchLoss(scorer, [scorer.batch(Encoder(loaded.tokenizer, loaded.max_length)(EXAMPLES))])


def optimizer_of(loaded: LoadedModel, placement: Placement, eps: float = 1e-2) -> ZeroOrder:
    named = loaded.model.named_parameters()
    return ZeroOrder(named, lr=0.1, eps=eps, model=loaded.model, placement=placement)


def trained(loaded: LoadedModel) -> dict[str, nn.Parameter]:
    return {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt", "tensor_train"])
def test_adapters_have_ids_of_their_own_and_the_base_keeps_its(
    folders: dict[str, Path], kind: str
) -> None:
    full = optimizer_of(load(folders, "opt", "full"), InPlace()).table
    optimizer = optimizer_of(load(folders, "opt", kind), InPlace())
    base = {name: pid for name, pid in optimizer.table.items() if pid < ADAPTER_BASE}
    assert base == full
    assert all(info.pid >= ADAPTER_BASE for info in optimizer.infos)


@pytest.mark.parametrize("kind", ["lora", "tensor_train", "head", "bitfit", "full"])
def test_training_begins_at_the_pretrained_model(folders: dict[str, Path], kind: str) -> None:
    expected = closure_of(load(folders, "opt", "full"))(1)
    assert closure_of(load(folders, "opt", kind))(1) == pytest.approx(expected, abs=1e-7)


def test_lora_adds_the_product_of_its_two_matrices(folders: dict[str, Path]) -> None:
    loaded = load(folders, "opt", "lora", r=4, alpha=6.0)
    query = loaded.model.get_submodule("model.decoder.layers.1.self_attn.q_proj")
    a, b = query.lora_A["default"].weight, query.lora_B["default"].weight
    assert (a.shape, b.shape) == ((4, 16), (16, 4))
    assert a.abs().max() <= math.sqrt(1 / 16)  # uniform with a = sqrt(5)
    assert not b.any()
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 16)
        expected = query.base_layer(x) + 6.0 / 4 * x @ a.T @ b.T
        torch.testing.assert_close(query(x), expected)
    layers = {n.split(".")[-4] for n in trained(loaded)}
    assert layers == {"q_proj", "v_proj"}


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_prefix_from_activations_is_text_before_the_text(
    folders: dict[str, Path], name: str
) -> None:
    """At the start a prefix is five words; without a mask the text must read on as behind them."""
    loaded, plain = load(folders, name, "prefix"), load(folders, name, "full").model
    torch.manual_seed(0)
    rows = plain.get_input_embeddings().weight.shape[0]
    words = torch.randint(min(len(loaded.tokenizer), rows), (1, 5))
    text = torch.randint(10, 400, (3, 7))
    with torch.inference_mode():
        if name == "bert":  # words see no text behind them only if they are read before it
            assert loaded.model(input_ids=text).logits.shape == (3, 7, rows)
            assert not torch.allclose(
                loaded.model(input_ids=text).logits, plain(input_ids=text).logits, atol=1e-3
            )
            return
        whole = torch.cat((words.expand(3, -1), text), dim=1)
        expected = plain(input_ids=whole).logits[:, 5:]
        torch.testing.assert_close(
            loaded.model(input_ids=text).logits, expected, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_prompt_from_vocabulary_is_text_before_the_text(
    folders: dict[str, Path], name: str
) -> None:
    loaded, plain = load(folders, name, "prompt", num_tokens=4), load(folders, name, "full").model
    torch.manual_seed(0)
    rows = plain.get_input_embeddings().weight.shape[0]
    words = torch.randint(min(len(loaded.tokenizer), rows), (4,))
    text = torch.randint(10, 400, (3, 7))
    mask = torch.ones_like(text)
    with torch.inference_mode():
        got = loaded.model(input_ids=text, attention_mask=mask).logits
        whole = torch.cat((words.expand(3, -1), text), dim=1)
        torch.testing.assert_close(got, plain(input_ids=whole).logits[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_what_stands_before_the_text_leaves_it_less_room(
    folders: dict[str, Path], kind: str
) -> None:
    loaded = load(folders, "opt", kind, num_tokens=7)
    assert loaded.max_length == 64 - 7
    loaded.model(input_ids=torch.ones(1, 57, dtype=torch.int64))
    with pytest.raises(UserError, match=r"num_tokens = 63: the model takes 64 tokens"):
        load(folders, "opt", kind, num_tokens=63)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_generation_with_a_cache_says_the_same_as_without(
    folders: dict[str, Path], name: str, kind: str
) -> None:
    loaded = load(folders, name, kind)
    text = torch.randint(10, 400, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    got = [
        loaded.model.generate(input_ids=text, attention_mask=mask, use_cache=cache, **options)
        for cache in (True, False)
    ]
    assert got[0].tolist() == got[1].tolist()


def test_head_is_untied_and_nothing_below_moves(folders: dict[str, Path]) -> None:
    loaded = load(folders, "opt", "head")
    assert set(trained(loaded)) == {"lm_head.weight"}
    table = loaded.model.get_input_embeddings().weight
    assert torch.equal(table, loaded.model.lm_head.weight)
    assert table.data_ptr() != loaded.model.lm_head.weight.data_ptr()
    tied = load(folders, "opt", "head", untie=False)
    assert set(trained(tied)) == {"model.decoder.embed_tokens.weight"}
    masked = load(folders, "bert", "head")
    assert {name.split(".")[0] for name in trained(masked)} == {"cls"}


def test_bitfit_trains_biases_alone(folders: dict[str, Path]) -> None:
    names = set(trained(load(folders, "opt", "bitfit")))
    assert names
    assert all(name.endswith(".bias") for name in names)
    with pytest.raises(UserError, match="LlamaForCausalLM has no biases to train"):
        load(folders, "llama", "bitfit")


@pytest.mark.parametrize("size", [16, 64, 768, 1024, 4096, 5120, 11008, 97])
def test_dimensions_multiply_to_the_width(size: int) -> None:
    parts = dimensions(size)
    assert math.prod(parts) == size
    assert parts == sorted(parts)
    if size != 97:
        assert len(parts) == max(1, round(math.log(size, 8)))


def test_tensor_train_matrix_is_the_product_of_its_factors() -> None:
    """Entry by entry, as eq. 3 of the paper has it."""
    torch.manual_seed(0)
    layer = TensorTrainLinear(12, 16, rank=3)
    sizes = [*dimensions(16), *dimensions(12)]
    factors = [layer.get_parameter(f"factor_{i}") for i in range(len(sizes))]
    assert [f.shape[1] for f in factors] == sizes
    matrix = layer.matrix()
    for row in range(16):
        for column in range(12):
            index, rest = [], row * 12 + column
            for size in reversed(sizes):
                index.insert(0, rest % size)
                rest //= size
            entry = torch.eye(1)
            for factor, i in zip(factors, index, strict=True):
                entry = entry @ factor[:, i]
            assert entry.item() == pytest.approx(matrix[row, column].item(), abs=1e-6)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_both_signs_in_one_batch_equal_two_passes(
    folders: dict[str, Path], name: str, kind: str
) -> None:
    losses = []
    for placement in (Paired(), InPlace()):
        loaded = load(folders, name, kind)
        optimizer, closure = optimizer_of(loaded, placement), closure_of(loaded)
        if isinstance(placement, Paired):
            check_paired(optimizer, closure, check_reads(optimizer, closure))
        optimizer.step(closure)
        losses.append(optimizer.last.losses)
    assert losses[0] == pytest.approx(losses[1], abs=BOUND)
    assert losses[0][0] != losses[0][1]  # what is added is really read


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("opt", k) for k in ("lora", "prefix", "prompt", "head", "tensor_train", "bitfit")),
        # A LLaMA has no biases.
        *(("llama", k) for k in ("lora", "prefix", "prompt", "head", "tensor_train")),
    ],
)
def test_a_frozen_matrix_multiplies_once_for_both_signs(
    folders: dict[str, Path], name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the doubled batch, in the transformer, or one copy of it; nothing is perturbed there."""
    loaded = load(folders, name, kind)
    named = loaded.model.named_parameters()
    frozen = {id(p): n for n, p in named if p.dim() == 2 and not p.requires_grad}
    seen: list[tuple[str, int]] = []
    plain = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        if id(weight) in frozen:
            seen.append((frozen[id(weight)], x.shape[0]))
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    optimizer, closure = optimizer_of(loaded, Paired()), closure_of(loaded)
    rows, length = closure.batches[0].input_ids.shape
    optimizer.step(closure)  # the first looks at the model both ways, see `LowerLayers`
    seen.clear()
    optimizer.step(closure)
    layers = [(n, count) for n, count in seen if ".layers." in n]
    assert len({n for n, _ in layers}) == len(layers) >= 12
    # OPT's feed-forward sees the tokens of all rows in one dimension
    tokens = 2 * rows * (length + (loaded.tuning.num_positions if kind == "prompt" else 0))
    both = {2 * rows, tokens} if kind != "head" else {rows, tokens // 2}  # no layer moves
    assert {count for _, count in layers} <= both


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt", "tensor_train"])
def test_adapters_of_a_16_bit_model_are_float32_and_paired_holds(
    folders: dict[str, Path], kind: str
) -> None:
    loaded = load_model(
        section(folders["llama"], "llama", dtype="bfloat16", tuning={"kind": kind}), 0
    )
    assert {p.dtype for p in trained(loaded).values()} == {torch.float32}
    optimizer, closure = optimizer_of(loaded, Paired()), closure_of(loaded)
    check_paired(optimizer, closure, check_reads(optimizer, closure))
    assert math.isfinite(optimizer.step(closure))


@pytest.mark.parametrize("kind", ["lora", "tensor_train"])
def test_target_that_is_no_layer_is_refused(folders: dict[str, Path], kind: str) -> None:
    with pytest.raises(
        UserError, match=r"targets = \['q_prj'\]: no module .* did you mean 'q_proj"
    ):
        load(folders, "opt", kind, targets=["q_prj"])
    with pytest.raises(UserError, match="is a OPTAttention, expected a linear layer"):
        load(folders, "opt", kind, targets=["self_attn"])
    loaded = load(folders, "opt", kind, targets=["fc1"])
    assert all(".fc1." in name for name in trained(loaded))


def test_model_without_attention_is_refused_a_prefix(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    shape = {"vocab_size": 448, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    MambaForCausalLM(MambaConfig(**shape)).save_pretrained(tmp_path)
    families.save_tokenizer(families.FAMILIES["gpt2"], tmp_path)
    with pytest.raises(UserError, match=r"kind = 'prefix': .*Mamba.* takes no past_key_values"):
        load_model(section(tmp_path, "gpt2", tuning={"kind": "prefix"}), 0)
    with pytest.raises(UserError, match="has no query and value projections under a known name"):
        load_model(section(tmp_path, "gpt2", tuning={"kind": "lora"}), 0)


def test_adapters_do_not_disturb_the_callers_random_numbers(folders: dict[str, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(folders, "opt", "lora")
    assert torch.equal(torch.rand(3), expected)
