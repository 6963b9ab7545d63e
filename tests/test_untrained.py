"""References without training: demonstrations, linear probing; and what memory is counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.optim import tiny
from tests.test_resume import prepare
from zolab import assets
from zolab.baselines import ICL, LinearProbing
from zolab.baselines.untrained import answered
from zolab.errors import UserError
from zolab.memory import EVALUATION, STEPS, PeakMemory
from zolab.models.load import load_tokenizer
from zolab.objectives import CausalScorer, Encoder
from zolab.run import run_dir
from zolab.tasks.base import Example
from zolab.tracking.local import read_rows

WORDS = (" terrible", " great")


@pytest.fixture(scope="module")
def tokenizer():
    folder = assets.locate_model("opt-prompt-2m")
    return load_tokenizer(str(folder), {"path": "opt-prompt-2m"})


def examples(count: int, start: int = 0) -> list[Example]:
    return [
        Example(f"This is film number {i}. It was", WORDS, i % 2)
        for i in range(start, start + count)
    ]


def splits() -> dict[str, list[Example]]:
    return {"train": examples(12), "dev": examples(3, 100), "test": examples(4, 200)}


def test_demonstrations_are_answered_examples_before_a_blank_line(tokenizer) -> None:
    icl = ICL(torch.nn.Linear(1, 1), num_demonstrations=5)
    got = icl.prompts(splits(), Encoder(tokenizer, 512))
    known = {answered(e) for e in splits()["train"]}
    assert answered(examples(2)[1]) == "This is film number 1. It was great"
    assert got["train"] == splits()["train"]
    for before, after in zip(splits()["test"], got["test"], strict=True):
        *shown, question = after.prompt.split("\n\n")
        assert question == before.prompt
        assert len(set(shown)) == 5
        assert set(shown) <= known
        assert (after.candidates, after.label) == (before.candidates, before.label)
    assert len({e.prompt.rpartition("\n\n")[0] for e in got["test"]}) == 4  # anew for each
    assert icl.facts == {"dev/demonstrations": 5.0, "test/demonstrations": 5.0}


def test_demonstrations_repeat_with_the_seed_and_are_one_set_if_asked(tokenizer) -> None:
    def prompts(**options) -> list[str]:
        icl = ICL(torch.nn.Linear(1, 1), num_demonstrations=5, **options)
        return [e.prompt for e in icl.prompts(splits(), Encoder(tokenizer, 512))["test"]]

    assert prompts(seed=1) == prompts(seed=1) != prompts(seed=2)
    assert prompts(demo_seed=1, seed=1) == prompts(demo_seed=1, seed=2)
    assert len({text.rpartition("\n\n")[0] for text in prompts(demo_seed=1)}) == 1


def test_as_many_demonstrations_as_fit_none_cut(tokenizer) -> None:
    """One more token would not fit; nothing of the question or of a demonstration is lost."""
    encoder = Encoder(tokenizer, 64)
    icl = ICL(torch.nn.Linear(1, 1))
    got = icl.prompts(splits(), encoder)
    shortest = min(len(tokenizer("\n\n" + answered(e))["input_ids"]) for e in splits()["train"])
    assert 0 < icl.facts["test/demonstrations"] < 12
    for example, encoded in zip(got["test"], encoder(got["test"]), strict=True):
        length = len(tokenizer(example.prompt + WORDS[0])["input_ids"])
        assert 64 - shortest < length <= 64
        assert not encoded.truncated
    with pytest.raises(UserError, match="no demonstration fits beside a question in 16 tokens"):
        icl.prompts(splits(), Encoder(tokenizer, 16))


@pytest.fixture(scope="module")
def scorer(tokenizer) -> CausalScorer:
    from zolab.models.load import load_model

    config = {"path": "opt-prompt-2m", "init": "pretrained", "dtype": "float32", "device": "cpu"}
    loaded = load_model({**config, "config": {}, "revision": None}, 0)
    return CausalScorer(loaded.model, 0)


def test_features_are_what_predicts_the_label_word(scorer: CausalScorer, tokenizer) -> None:
    encoded = Encoder(tokenizer, 512)(examples(3))
    batch = scorer.batch(encoded)
    got = scorer.features(batch)
    for i, example in enumerate(encoded):
        ids = torch.tensor([example.rows[0]])
        with torch.no_grad():
            hidden = scorer.model.model(input_ids=ids).last_hidden_state[0, -1]
        assert torch.allclose(got[i], hidden, atol=1e-5)


def test_probing_is_the_logistic_regression_of_its_features(scorer, tokenizer) -> None:
    texts = ["good", "bad", "lovely", "awful", "great fun", "dull", "superb", "boring"] * 3
    rows = [Example(f"A {t} film. It was", WORDS, 1 - i % 2) for i, t in enumerate(texts)]
    encoded = Encoder(tokenizer, 512)(rows)
    reader = LinearProbing(scorer.model).reader(scorer, encoded, 7)
    assert reader.classifier.intercept_ == 0.0  # OPT
    batch = reader.batch(encoded[:8])
    scores = reader.scores(batch)
    assert scores.shape == (1, 8, 2)
    assert torch.allclose(scores.exp().sum(-1), torch.ones(1, 8))
    assert (scores[0].argmax(1) == batch.labels).all()
    weights = reader.classifier.coef_[0]
    logits = scorer.features(batch).double().numpy() @ weights
    assert np.allclose((scores[0, :, 1] - scores[0, :, 0]).numpy(), logits, atol=1e-4)


def test_probing_needs_classes(scorer, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, probing = Encoder(tokenizer, 512), LinearProbing(scorer.model)
    choice = [Example("One or", (f" {i}", " two"), 0) for i in range(4)]
    with pytest.raises(UserError, match="use optimizer=adamw model/tuning=head"):
        probing.reader(scorer, encoder(choice), 4)
    same = [Example(f"Film {i}. It was", WORDS, 1) for i in range(4)]
    with pytest.raises(UserError, match="4 rows of 1"):
        probing.reader(scorer, encoder(same), 4)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"scikit-learn.*install zolab\[baselines\]"):
        probing.reader(scorer, encoder(examples(8)), 4)


@pytest.mark.parametrize("name", ["icl", "linear_probing"])
def test_runs_to_a_result_without_a_step(name: str, tmp_path: Path) -> None:
    folder = prepare(tmp_path, f"optimizer={name}")
    result = run_dir(folder)
    assert (result["steps"], result["forwards_total"], result["best"]["step"]) == (0, 0, 0)
    (row,) = read_rows(folder / "metrics.jsonl")
    assert 0.0 <= row["test/accuracy"] <= 1.0
    assert ("test/demonstrations" in row) == (name == "icl")
    if name == "icl":
        assert 1 < result["best"]["test/demonstrations"] < 32
    assert result["peak_bytes"] == result["eval_peak_bytes"] > result["base_bytes"] > 0
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
def test_peak_is_of_the_steps_not_of_what_came_before() -> None:
    model = tiny.opt()
    before = torch.ones(60 << 18)  # 60 MiB, freed before the count begins
    del before
    memory = PeakMemory(model, torch.device("cpu"))
    held = torch.ones(20 << 18)
    del held
    memory.lap(STEPS)
    held = torch.ones(40 << 18)
    del held
    memory.lap(EVALUATION)
    steps, evaluation = (memory.peak(k) - memory.base for k in (STEPS, EVALUATION))
    assert 19 << 20 < steps < 30 << 20  # the kernel counts a few pages late
    assert 39 << 20 < evaluation < 50 << 20
