"""Paired evaluation on many architectures, and models for which it must be refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.optim.tiny import ROWS, TOKENS, VOCAB, bits, lm_closure, opt, same_bits, tokens
from zolab.optim import InPlace, MeZO, Paired, PerLayer
from zolab.optim.selfcheck import SelfCheckError, check_paired, check_reads, settle_placement

_SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_WIDE = {**_SHAPE, "intermediate_size": 48}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_PADDED = {**_GROUPED, "pad_token_id": 0}
_SMALL = {"vocab_size": VOCAB, "n_layer": 2, "n_head": 4}
#: (config class, arguments) of one tiny model a family.
FAMILIES = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("MistralConfig", _GROUPED),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "gemma": ("GemmaConfig", {**_PADDED, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_PADDED, "head_dim": 8}),
    "phi3": ("Phi3Config", _PADDED),
    "gpt_neox": ("GPTNeoXConfig", _WIDE),
    "gpt2": ("GPT2Config", {**_SMALL, "n_embd": 32, "n_positions": 64}),
    "stablelm": ("StableLmConfig", _GROUPED),
    "bloom": ("BloomConfig", {**_SMALL, "hidden_size": 32}),
    "falcon": ("FalconConfig", {k: v for k, v in _SHAPE.items() if k[:3] != "max"}),
    "olmo2": ("Olmo2Config", _PADDED),
    "roberta": ("RobertaConfig", {**_WIDE, "pad_token_id": 1}),
    "bert": ("BertConfig", _WIDE),
}
MASKED = ("roberta", "bert")


def family(name: str) -> nn.Module:
    import transformers

    config_name, arguments = FAMILIES[name]
    config = getattr(transformers, config_name)(**arguments)
    kind = "AutoModelForMaskedLM" if name in MASKED else "AutoModelForCausalLM"
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, kind).from_config(config).eval()


def closure_of(model: nn.Module, name: str):
    if name not in MASKED:
        return lm_closure(model)
    ids = tokens()

    def closure(copies: int = 1) -> list[float]:
        logits = model(input_ids=ids.repeat(copies, 1)).logits.float()
        return [
            torch.nn.functional.cross_entropy(part.flatten(0, 1), ids.flatten()).item()
            for part in logits.chunk(copies)
        ]

    return closure


@pytest.mark.parametrize("name", list(FAMILIES))
def test_paired_equals_in_place_on_every_family(name: str) -> None:
    losses = []
    for placement in (InPlace(), Paired()):
        model = family(name)
        optimizer = MeZO(
            model.named_parameters(), lr=1e-3, eps=1e-2, placement=placement, model=model, seed=4
        )
        closure = closure_of(model, name)
        start = bits(model)
        settle_placement(optimizer, closure)
        assert same_bits(bits(model), start)  # the check writes to no weight
        assert optimizer.placement is placement  # and finds nothing to object to
        for _ in range(3):
            optimizer.step(closure)
            losses.append(optimizer.last.losses)
    difference = (torch.tensor(losses[:3]) - torch.tensor(losses[3:])).abs().max()
    assert difference <= 2e-5
    assert max(abs(plus - minus) for plus, minus in losses) > 1e-4


class Peeking(nn.Module):
    """Reads its child's weight without calling the child."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.inner = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, VOCAB)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False):
        hidden = torch.tanh(self.embed(input_ids) @ self.inner.weight.T)
        return type("Out", (), {"logits": self.head(hidden)})


class Shuffling(Peeking):
    """Rows of the batch change places between two layers."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False):
        hidden = self.inner(self.embed(input_ids)).flip(0)
        return type("Out", (), {"logits": self.head(hidden).flip(0)})


class Pooling(Peeking):
    """A layer sees fewer rows than the batch has."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False):
        hidden = self.embed(input_ids)
        gate = self.inner(hidden.mean(dim=(0, 1))[None].expand(3, -1)).sum()
        return type("Out", (), {"logits": self.head(hidden + gate)})


def small(kind: type[nn.Module], placement, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    model = kind().to(dtype)
    optimizer = MeZO(model.named_parameters(), eps=1e-1, placement=placement, model=model)
    return model, optimizer, lm_closure(model)


@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_a_weight_read_from_outside_is_found_and_named(placement) -> None:
    model, optimizer, closure = small(Peeking, placement())
    start = bits(model)
    with pytest.raises(SelfCheckError, match=r"inner\.weight is read outside"):
        check_reads(optimizer, closure)
    assert same_bits(bits(model), start)
    with pytest.warns(UserWarning, match=r"-> in_place: parameter inner\.weight"):
        settle_placement(optimizer, closure)
    assert isinstance(optimizer.placement, InPlace)


def test_sixteen_bits_have_nothing_to_fall_back_on() -> None:
    _, optimizer, closure = small(Peeking, Paired(), torch.bfloat16)
    with pytest.raises(SelfCheckError, match=r"inner\.weight.*model\.dtype=float32"):
        settle_placement(optimizer, closure)


def test_rows_that_change_places_fall_back_to_per_layer() -> None:
    _, optimizer, closure = small(Shuffling, Paired())
    with pytest.raises(SelfCheckError, match="a doubled batch gives loss"):
        check_paired(optimizer, closure, check_reads(optimizer, closure))
    with pytest.warns(UserWarning, match="paired -> per_layer"):
        settle_placement(optimizer, closure)
    assert isinstance(optimizer.placement, PerLayer)


def test_rows_of_another_number_are_named() -> None:
    _, optimizer, closure = small(Pooling, Paired())
    with pytest.warns(UserWarning, match=r"module inner \(Linear\) gets inputs with \[3\] rows"):
        settle_placement(optimizer, closure)
    assert isinstance(optimizer.placement, PerLayer)


def test_a_model_fit_for_paired_keeps_it() -> None:
    model = opt()
    optimizer = MeZO(model.named_parameters(), placement=Paired(), model=model)
    closure = lm_closure(model)
    assert tokens().shape == (ROWS, TOKENS)
    settle_placement(optimizer, closure)
    assert isinstance(optimizer.placement, Paired)
    plus, minus = check_reads(optimizer, closure)
    assert plus != minus
