"""Scores, losses and batches against plain computations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zolab import assets
from zolab.baselines.untrained import Calibrated
from zolab.data import BatchOrder
from zolab.evaluate import calibration, evaluate
from zolab.models.load import LoadedModel, load_model
from zolab.objectives import ACCURACY, LM, BatchLoss, CausalScorer, Encoder, collate
from zolab.tasks import Example

MODEL = {
    "path": "opt-prompt-2m", "init": "pretrained", "dtype": "float32", "config": {},
    "revision": None, "attn_implementation": None, "device": "cpu",
}  # fmt: skip
EXAMPLES = [
    Example("the movie was a joy . It was", (" terrible", " great"), 1),
    Example("dull , slow and far too long for what it has to say . It was", (" bad", " great"), 0),
    Example("what a waste", (" of a good cast", " no", " , truly a waste of my time"), 2),
    Example("fine", (" terrible", " great"), 0),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(MODEL, 0)


@pytest.fixture(scope="module")
def scorer(loaded: LoadedModel) -> CausalScorer:
    return CausalScorer(loaded.model, loaded.tokenizer.pad_token_id)


def plain_score(loaded: LoadedModel, prompt: str, candidate: str) -> float:
    """Mean log-probability of the candidate's tokens: one row, no padding, all logits."""
    prefix = loaded.tokenizer(prompt)["input_ids"]
    ids = torch.tensor([loaded.tokenizer(prompt + candidate)["input_ids"]])
    with torch.inference_mode():
        log_probs = F.log_softmax(loaded.model(input_ids=ids).logits[0].float(), dim=-1)
    count = ids.shape[1] - len(prefix)
    places = range(ids.shape[1] - count - 1, ids.shape[1] - 1)
    return sum(log_probs[p, ids[0, p + 1]].item() for p in places) / count


def test_scores_equal_a_plain_computation(loaded: LoadedModel, scorer: CausalScorer) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    batch = collate(encoded, 0, scorer.device)
    with torch.inference_mode():
        scores = scorer.scores(batch)[0]
    for i, example in enumerate(EXAMPLES):
        for j in range(scores.shape[1]):
            if j < len(example.candidates):
                plain = plain_score(loaded, example.prompt, example.candidates[j])
                assert scores[i, j].item() == pytest.approx(plain, abs=2e-5)
            else:
                assert scores[i, j].item() == -torch.inf


def test_single_token_candidates_share_a_row(loaded: LoadedModel) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    assert [len(e.rows) for e in encoded] == [1, 1, 3, 1]


def test_loss_is_cross_entropy_over_candidates(loaded: LoadedModel, scorer: CausalScorer) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    closure = BatchLoss(scorer, [collate(encoded, 0, scorer.device)])
    expected = 0.0
    for example in EXAMPLES:
        scores = torch.tensor([plain_score(loaded, example.prompt, c) for c in example.candidates])
        expected += F.cross_entropy(scores, torch.tensor(example.label)).item()
    assert closure(1)[0] == pytest.approx(expected / len(EXAMPLES), abs=2e-5)
    assert closure(2) == pytest.approx([closure(1)[0]] * 2, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_give_the_loss_of_the_batch(
    loaded: LoadedModel, scorer: CausalScorer, size: int
) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    whole = BatchLoss(scorer, [collate(encoded, 0, scorer.device)])
    parts = [collate(encoded[i : i + size], 0, scorer.device) for i in range(0, len(encoded), size)]
    pieces = BatchLoss(scorer, parts)
    assert pieces(1)[0] == pytest.approx(whole(1)[0], abs=1e-6)
    gradients = []
    for closure in (whole, pieces):
        loaded.model.zero_grad(set_to_none=True)
        closure.backward()
        gradients.append(loaded.model.model.decoder.layers[0].fc1.weight.grad.clone())
    loaded.model.zero_grad(set_to_none=True)
    assert torch.allclose(gradients[0], gradients[1], rtol=0, atol=1e-6)


def test_padding_does_not_reach_a_score(loaded: LoadedModel, scorer: CausalScorer) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    with torch.inference_mode():
        together = scorer.scores(collate(encoded, 0, scorer.device))[0][3, :2]
        alone = scorer.scores(collate(encoded[3:], 0, scorer.device))[0][0]
        other_pad = scorer.scores(collate(encoded, 77, scorer.device))[0][3, :2]
    assert torch.allclose(together, alone, rtol=0, atol=2e-5)
    assert torch.allclose(together, other_pad, rtol=0, atol=2e-5)


def test_calibration_is_the_mean_score(loaded: LoadedModel, scorer: CausalScorer) -> None:
    encoded = Encoder(loaded.tokenizer, 256)([EXAMPLES[0], EXAMPLES[3]])
    bias = calibration(scorer, encoded, 1)
    rows = [[plain_score(loaded, e.prompt, c) for c in e.candidates] for e in EXAMPLES[::3]]
    assert torch.allclose(bias, torch.tensor(rows).mean(0), rtol=0, atol=2e-5)
    plain, calibrated = (
        evaluate(scorer, encoded, 2),
        evaluate(Calibrated(scorer, bias), encoded, 2),
    )
    assert plain.loss != calibrated.loss


def test_embedded_zero_shot_is_what_its_card_says(
    loaded: LoadedModel, scorer: CausalScorer
) -> None:
    """57.4 % raw and 75.0 % calibrated on the test split."""
    from zolab.tasks import Classification

    task = Classification("uci", "uci_sent", "{sentence} It was", [" terrible", " great"])
    splits = task.load(assets.task_dir("uci_sent"))
    encoder = Encoder(loaded.tokenizer, loaded.max_length)
    test, train = encoder(splits["test"]), encoder(splits["train"][:200])
    assert evaluate(scorer, test, 64).metrics["accuracy"] == pytest.approx(0.574, abs=0.0015)
    bias = calibration(scorer, train, 64)
    calibrated = evaluate(Calibrated(scorer, bias), test, 64)
    assert calibrated.metrics["accuracy"] == pytest.approx(0.750, abs=0.0015)


def test_autocast_moves_losses_a_little(loaded: LoadedModel) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    batch = collate(encoded, 0, torch.device("cpu"))
    losses = [
        BatchLoss(CausalScorer(loaded.model, 0, dtype), [batch])(1)[0]
        for dtype in (None, torch.bfloat16)
    ]
    assert 0 < abs(losses[0] - losses[1]) < 0.05


def test_each_epoch_shows_every_example_once() -> None:
    lengths = [1 + i % 7 for i in range(103)]
    order = BatchOrder(lengths, 10, seed=3)
    assert order.per_epoch == 11
    seen = [order.batch(step) for step in range(1, 23)]
    for epoch in (seen[:11], seen[11:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(103))
        assert sorted(len(batch) for batch in epoch) == [3] + [10] * 10
    assert seen[:11] != seen[11:]
    again = BatchOrder(lengths, 10, seed=3)
    assert [again.batch(step) for step in (15, 2, 22)] == [seen[14], seen[1], seen[21]]
    assert BatchOrder(lengths, 10, seed=4).batch(1) != seen[0]
    # Batches hold similar lengths: less padding than a random order has.
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in seen[:11]]
    assert sum(spread) / len(spread) < 4


def test_language_model_loss_is_a_mean_over_answer_tokens(
    loaded: LoadedModel, scorer: CausalScorer
) -> None:
    encoded = Encoder(loaded.tokenizer, 256)(EXAMPLES)
    plain, count = 0.0, 0
    for example in EXAMPLES:
        answer = example.candidates[example.label]
        tokens = [loaded.tokenizer(text)["input_ids"] for text in (example.prompt + answer,)]
        extra = len(tokens[0]) - len(loaded.tokenizer(example.prompt)["input_ids"])
        plain -= plain_score(loaded, example.prompt, answer) * extra
        count += extra
    assert count > len(EXAMPLES)
    batches = [scorer.batch(encoded[:1]), scorer.batch(encoded[1:])]
    assert BatchLoss(scorer, batches, LM)(1)[0] == pytest.approx(plain / count, abs=2e-5)


def test_negative_accuracy_counts_every_right_candidate(
    loaded: LoadedModel, scorer: CausalScorer
) -> None:
    scores = [
        [plain_score(loaded, example.prompt, text) for text in example.candidates]
        for example in EXAMPLES
    ]
    best = [max(range(len(row)), key=row.__getitem__) for row in scores]
    wrong = [(b + 1) % len(row) for b, row in zip(best, scores, strict=True)]
    examples = [
        Example(EXAMPLES[0].prompt, EXAMPLES[0].candidates, best[0]),
        Example(EXAMPLES[1].prompt, EXAMPLES[1].candidates, wrong[1]),
        Example(EXAMPLES[2].prompt, EXAMPLES[2].candidates, wrong[2], right=(best[2], wrong[2])),
        Example(EXAMPLES[3].prompt, EXAMPLES[3].candidates, wrong[3]),
    ]
    encoded = Encoder(loaded.tokenizer, 256)(examples)
    assert BatchLoss(scorer, [scorer.batch(encoded)], ACCURACY)(2) == [-0.5, -0.5]
    assert evaluate(scorer, encoded, 3).metrics == {"accuracy": 0.5}
