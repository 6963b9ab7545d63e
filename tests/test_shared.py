"""Prompts that pass a model once for all their answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from tests.optim.tiny import SmallLM
from tests.test_lower import model_of
from zolab.evaluate import evaluate
from zolab.objectives import CausalScorer, shared
from zolab.objectives.encode import Candidate, Encoded

CAUSAL = [name for name, family in FAMILIES.items() if not family.masked]


def example(prompt: int, answers: tuple[int, ...], seed: int) -> Encoded:
    """An example with a prompt of so many tokens and answers of so many."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 120, (count,), generator=generator).tolist())

    text, rows, candidates = tokens(prompt), [], []
    for i, count in enumerate(answers):
        answer = tokens(count)
        rows.append(text + answer[:-1])
        places = tuple(range(prompt - 1, prompt - 1 + count))
        candidates.append(Candidate(i, places, answer))
    return Encoded(tuple(rows), tuple(candidates), label=1, truncated=False)


EXAMPLES = [example(41, (3, 2, 5), 0), example(33, (2, 4), 1), example(37, (2, 2, 3, 6), 2)]


@pytest.fixture(autouse=True)
def _however_little_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SAVED", 0)


def scores_of(model: nn.Module, share: bool) -> tuple[torch.Tensor, CausalScorer]:
    scorer = CausalScorer(model, pad_id=1)
    with torch.inference_mode():
        return scorer.scores(scorer.batch(EXAMPLES, share=share))[0], scorer


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_are_those_of_the_plain_way(name: str) -> None:
    model = model_of(name)
    plain, _ = scores_of(model, share=False)
    _, scorer = scores_of(model, share=True)
    assert scorer.shared.usable
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode():
        again = scorer.scores(scorer.batch(EXAMPLES, share=True))[0]
    assert seen == [(1, 40), (3, 5), (1, 32), (2, 4), (1, 36), (4, 6)]
    found = again.nan_to_num(neginf=-1e3)
    assert torch.allclose(found, plain.nan_to_num(neginf=-1e3), rtol=0, atol=1e-5)


def test_numbers_that_are_none_decide_nothing() -> None:
    model = model_of("opt")
    weight = model.model.decoder.final_layer_norm.weight
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    _, scorer = scores_of(model, share=True)
    assert scorer.shared.usable is None
    weight.data.copy_(kept)
    with torch.inference_mode():
        scorer.scores(scorer.batch(EXAMPLES, share=True))
    assert scorer.shared.usable


def test_positions_scaled_by_length_go_the_plain_way() -> None:
    model = model_of("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    _, scorer = scores_of(model, share=True)
    assert scorer.shared.usable is False
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}}
    assert CausalScorer(model, pad_id=1).shared.usable is False


def test_rows_without_a_common_beginning_or_with_one_row_pass_as_they_are() -> None:
    short = Encoded(((5, 6, 7),), (Candidate(0, (2,), (8,)), Candidate(0, (2,), (9,))), 0, False)
    cut = Encoded(((5, 6), (7, 6)), (Candidate(0, (1,), (8,)), Candidate(1, (1,), (9,))), 0, False)
    assert shared.spans_of([short, cut], 8) == ()
    with_long = [short, cut, *EXAMPLES]
    spans = shared.spans_of(with_long, 48)
    assert [span.prefix for span in spans] == [0, 0, 40, 32, 36]
    scorer = CausalScorer(model_of("opt"), pad_id=1)
    with torch.inference_mode():
        both = [scorer.scores(scorer.batch(with_long, share=share))[0] for share in (False, True)]
    assert scorer.shared.usable
    both = [scores.nan_to_num(neginf=-1e3) for scores in both]
    assert torch.allclose(*both, rtol=0, atol=1e-5)


class Forgets(SmallLM):
    """Takes a cache and does not use it."""

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **options: object) -> object:
        return super().forward(input_ids)


class Refuses(Forgets):
    """Takes none."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> object:
        return super().forward(input_ids)


@pytest.mark.parametrize("kind", [Forgets, Refuses])
def test_a_model_without_a_cache_goes_the_plain_way(kind: type[nn.Module]) -> None:
    model = kind()
    plain, _ = scores_of(model, share=False)
    first, scorer = scores_of(model, share=True)
    assert scorer.shared.usable is False
    with torch.inference_mode():
        later = scorer.scores(scorer.batch(EXAMPLES, share=True))[0]
    assert torch.equal(plain, first)
    assert torch.equal(plain, later)


def test_evaluation_shares_each_prompt_alone() -> None:
    model = model_of("llama")
    scorer = CausalScorer(model, pad_id=1)
    found = evaluate(scorer, EXAMPLES, 16)
    assert scorer.shared.usable
    scorer.shared.usable = False
    plain = evaluate(scorer, EXAMPLES, 16)
    assert found.metrics == plain.metrics
    assert found.loss == pytest.approx(plain.loss, abs=1e-5)
    assert scorer.batch(EXAMPLES).spans == ()
    scorer.shares = False  # as where weights stream in with each pass
    assert scorer.batch(EXAMPLES, share=True).spans == ()
