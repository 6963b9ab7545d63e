"""Greedy answers against plain decoding, their F1 against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from zolab import assets
from zolab.evaluate import evaluate
from zolab.models.load import load_model
from zolab.objectives import (
    LM,
    BatchLoss,
    CausalScorer,
    Encoder,
    Generator,
    NegativeF1,
    Prompts,
    best_f1,
)
from zolab.optim import InPlace, Paired, PerLayer, ZeroOrder
from zolab.tasks import Example

MODEL = {
    "path": "opt-prompt-2m", "init": "pretrained", "dtype": "float32", "config": {},
    "revision": None, "attn_implementation": None, "device": "cpu",
}  # fmt: skip
EXAMPLES = [
    Example("Question: what is it?\nAnswer:", (" a film\n",), 0, answers=("a film",)),
    Example("the movie was", (" good\n",), 0, answers=("good", "very good")),
    Example("I went to see the film last night and it", (" was\n",), 0, answers=("was bad",)),
]
_SMALL = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "opt": {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "llama": {**_SMALL, "intermediate_size": 32},
    "gpt2": {"vocab_size": 97, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "bloom": {"vocab_size": 97, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "gemma2": {**_SMALL, "intermediate_size": 32, "head_dim": 8, "num_key_value_heads": 2,
               "sliding_window": 4},
}  # fmt: skip


class Numbers:
    """A tokenizer without words: tokens are numbers, 7 is the end of a line."""

    eos_token_id = 2

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join("\n" if i == 7 else f" {i}" for i in ids if i != 2)


def tiny(family: str) -> nn.Module:
    torch.manual_seed(5)
    config = CONFIG_MAPPING[family](**FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform: no two tokens nearly as likely
            parameter.mul_(3.0)
    return model


def plain(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding of one row without padding and without a cache."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(count):
            new = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat((ids, new.view(1, 1)), dim=1)
            if int(new) in (2, 7):
                break
    return ids[0, len(prompt) :].tolist()


def prompts(rows: list[list[int]]) -> Prompts:
    longest = max(map(len, rows))
    ids = torch.tensor([[1] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return Prompts(ids, mask, tuple(("3 4",) for _ in rows))


ROWS = [[5, 9, 33, 12], [8, 41, 5, 5, 60, 77, 21, 13, 90], [4]]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_equal_plain_decoding(family: str) -> None:
    model, generator = tiny(family), Generator(Numbers(), 12)
    expected = [Numbers().decode(plain(model, row, 12)).split("\n")[0].strip() for row in ROWS]
    assert len(set(expected)) > 1
    texts = generator.texts(CausalScorer(model, 1), prompts(ROWS), copies=2)
    assert texts == [expected, expected]


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_each_placement_decodes_under_its_own_weights(family: str, placement: type) -> None:
    class Seen(NegativeF1):
        def terms(self, scorer, batch, copies):
            texts = self.generator.texts(scorer, batch.prompts, copies)
            said.extend(text for part in texts for text in part)
            return super().terms(scorer, batch, copies)

    class Stub:
        """A batch with prompts alone."""

        prompts, num_scored, num_examples = prompts(ROWS), (len(ROWS),), len(ROWS)

    answers = []
    for kind in (InPlace, placement):
        said: list[str] = []
        model = tiny(family)
        optimizer = ZeroOrder(
            model.named_parameters(), lr=1e-3, eps=0.3, seed=4, placement=kind(), model=model
        )
        objective = Seen(Generator(Numbers(), 8))
        closure = BatchLoss(CausalScorer(model, 1), [Stub()], objective)
        losses = optimizer.step(closure)
        assert -1.0 <= losses <= 0.0
        answers.append(said)
    assert answers[0] == answers[1]
    assert answers[0][:3] != answers[0][3:]  # eps is large enough to change what is said


def test_answers_end_with_the_line_and_skip_special_tokens() -> None:
    loaded = load_model(MODEL, 0)
    generator, scorer = Generator(loaded.tokenizer, 6), CausalScorer(loaded.model, 0)
    encoded = Encoder(loaded.tokenizer, 256, 6)(EXAMPLES)
    (texts,) = generator.texts(scorer, scorer.batch(encoded).prompts)
    for text, example in zip(texts, EXAMPLES, strict=True):
        ids = loaded.tokenizer(example.prompt)["input_ids"]
        with torch.inference_mode():
            out = loaded.model.generate(
                torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
        whole = loaded.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        assert text == whole.split("\n")[0].strip()


def test_evaluation_has_f1_and_the_answers_loss() -> None:
    loaded = load_model(MODEL, 0)
    generator, scorer = Generator(loaded.tokenizer, 4), CausalScorer(loaded.model, 0)
    encoded = Encoder(loaded.tokenizer, 256, 4)(EXAMPLES)
    texts = [generator.texts(scorer, scorer.batch([e]).prompts)[0][0] for e in encoded]
    golds = [texts[0] + " extra", "nothing like it", texts[2]]
    encoded = Encoder(loaded.tokenizer, 256, 4)(
        [Example(e.prompt, e.candidates, 0, answers=(g,)) for e, g in
         zip(EXAMPLES, golds, strict=True)]
    )  # fmt: skip
    found = evaluate(scorer, encoded, 2, likelihood=LM, generator=generator)
    mean = sum(best_f1(t, [g]) for t, g in zip(texts, golds, strict=True)) / 3
    assert found.metrics == {"f1": pytest.approx(mean)}
    assert found.loss == pytest.approx(BatchLoss(scorer, [scorer.batch(encoded)], LM)(1)[0])
    objective = NegativeF1(generator)
    assert BatchLoss(scorer, [scorer.batch(encoded)], objective)(1)[0] == pytest.approx(-mean)


def test_broken_weights_give_no_f1() -> None:
    model = tiny("opt")
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight.fill_(math.nan)
    (texts,) = Generator(Numbers(), 3).texts(CausalScorer(model, 1), prompts(ROWS))
    assert texts == [None] * 3


def test_long_prompts_leave_room_for_the_answer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    long = Example("word " * 60 + "Answer:", (" no\n",), 0, answers=("no",))
    (encoded,) = Encoder(tokenizer, 40, 10)([long])
    full = tokenizer(long.prompt)["input_ids"]
    assert encoded.truncated
    assert list(encoded.prompt) == [full[0], *full[-29:]]


@pytest.mark.parametrize(
    ("text", "golds", "expected"),
    [
        ("Six", ["six"], 1.0),
        ("The six.", ["six"], 1.0),  # articles and punctuation do not count
        ("six of them", ["six"], 0.5),  # 1 of 3 words, all of the gold: 2 * 1 / (3 + 1)
        ("in Oslo, Norway", ["Oslo"], 0.5),
        ("Oslo Oslo", ["Oslo"], 2 / 3),  # a word counts as often as the gold has it
        ("Oslo", ["Bergen", "Oslo city", "in the city of Oslo"], 2 / 3),  # best gold: 2 / (1 + 2)
        ("", ["Oslo"], 0.0),
        ("the", ["a"], 0.0),  # nothing is left of either
        ("twenty-two", ["twentytwo"], 1.0),
        ("22", ["twenty two"], 0.0),
    ],
)
def test_f1_by_hand(text: str, golds: list[str], expected: float) -> None:
    assert best_f1(text, golds) == pytest.approx(expected)
