"""Scores under a mask against plain computations; flat objectives under every placement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.tasks import tiny_masked
from zolab.evaluate import evaluate
from zolab.objectives import ACCURACY, OPTIONS, BatchLoss, MaskedEncoder, MaskedScorer
from zolab.optim import InPlace, Paired, PerLayer, ZeroOrder
from zolab.tasks import Example

WORDS = (" terrible", " great")
EXAMPLES = [
    Example("It was ", WORDS, 1, suffix="."),
    Example("a much longer text that needs far more tokens. It was ", WORDS, 0, suffix="."),
    Example("", (" Yes", " Maybe", " No"), 2, suffix=", and then some."),
    Example("in the middle ", WORDS, 0, suffix=" of it all"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_masked.save(tmp_path_factory.mktemp("roberta"))


def load(folder: Path) -> tuple[torch.nn.Module, MaskedScorer, list]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForMaskedLM.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger, so that no score is nearly another
            parameter.mul_(3.0)
    return (
        model,
        MaskedScorer(model, tokenizer.pad_token_id),
        MaskedEncoder(tokenizer, 200)(EXAMPLES),
    )


def plain(folder: Path, model: torch.nn.Module, example: Example) -> torch.Tensor:
    """Logits of the label words where the mask stands: one row, no padding, all positions."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(example.prompt + "<mask>" + example.suffix, return_tensors="pt")["input_ids"]
    place = ids[0].tolist().index(tokenizer.mask_token_id)
    words = [tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in example.candidates]
    with torch.inference_mode():
        return model(input_ids=ids).logits[0, place, words]


def test_scores_and_loss_are_those_of_the_label_words_at_the_mask(folder: Path) -> None:
    model, scorer, encoded = load(folder)
    logits = [plain(folder, model, example) for example in EXAMPLES]
    batch = scorer.batch(encoded)
    with torch.inference_mode():
        scores = scorer.scores(batch)[0]
    for row, expected, example in zip(scores, logits, EXAMPLES, strict=True):
        count = len(example.candidates)
        assert torch.isneginf(row[count:]).all()
        # Scores are log-probabilities over the vocabulary: the same up to a constant.
        centred = row[:count] - row[:count].mean()
        assert torch.allclose(centred, expected - expected.mean(), atol=2e-5)
    losses = [
        F.cross_entropy(row[None], torch.tensor([e.label])).item()
        for row, e in zip(logits, EXAMPLES, strict=True)
    ]
    mean = sum(losses) / len(losses)
    for copies in (1, 2):
        found = BatchLoss(scorer, [batch], OPTIONS)(copies)
        assert found == pytest.approx([mean] * copies, abs=2e-5)
    right = [int(row.argmax()) == e.label for row, e in zip(logits, EXAMPLES, strict=True)]
    found = evaluate(scorer, encoded, 3)
    assert found.loss == pytest.approx(mean, abs=2e-5)
    assert found.metrics == {"accuracy": sum(right) / len(right)}


@pytest.mark.parametrize("objective", [OPTIONS, ACCURACY], ids=lambda o: o.name)
@pytest.mark.parametrize("placement", [Paired, PerLayer])
def test_placements_agree_under_a_mask(folder: Path, objective, placement: type) -> None:
    losses = []
    for kind in (InPlace, placement):
        model, scorer, encoded = load(folder)
        optimizer = ZeroOrder(
            model.named_parameters(), lr=1e-3, eps=0.05, seed=2, placement=kind(), model=model
        )
        optimizer.step(BatchLoss(scorer, [scorer.batch(encoded)], objective))
        losses.append(optimizer.last.losses)
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    if objective is OPTIONS:
        assert losses[0][0] != losses[0][1]
    else:
        assert all(loss in (-1.0, -0.75, -0.5, -0.25, 0.0) for loss in losses[0])


def test_a_broken_model_has_no_accuracy(folder: Path) -> None:
    model, scorer, encoded = load(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    (loss,) = BatchLoss(scorer, [scorer.batch(encoded)], ACCURACY)(1)
    assert loss != loss
    assert evaluate(scorer, encoded, 4).metrics == {"accuracy": 0.0}
