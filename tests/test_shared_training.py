"""Prompts that pass once for their answers in training steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from torch import nn

from tests import families
from tests.families import FAMILIES
from tests.test_families import section
from tests.test_lower import model_of
from tests.test_preempted_run import asks_at
from tests.test_resume import exact_rows, journal_text, prepare
from tests.test_shared import CAUSAL, example
from zolab import process
from zolab.models.load import load_model
from zolab.models.tuning import KINDS
from zolab.objectives import OPTIONS, BatchLoss, CausalScorer, shared
from zolab.objectives.shared import Span, groups_of
from zolab.optim import InPlace, LayerMask, Paired, PerLayer, ZeroOrder
from zolab.run import run_dir

EXAMPLES = [example(45, (3, 2), 0), example(41, (2, 4), 1), example(45, (2, 2, 3, 6), 2)]
#: Prompt tuning takes ten positions of a model that has 64.
SHORT = [example(33, (2, 4), 1), example(37, (2, 2, 3, 6), 2)]
PLACEMENTS = (InPlace, Paired, PerLayer)


@pytest.fixture
def anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is saved, and whatever the cache takes."""
    monkeypatch.setattr(shared, "SAVED", 0)
    monkeypatch.setattr(shared, "WORTH", 1.0)
    monkeypatch.setattr(shared, "LIVE", 1 << 20)


def losses(
    model: nn.Module, share: bool, placement: type, steps: int = 2, examples=EXAMPLES, **options
) -> list:
    """Of some steps; `share` as a training step asks for it."""
    scorer = CausalScorer(model, pad_id=1)
    batch = scorer.batch(examples, trains=share)
    assert bool(batch.groups) == share
    optimizer = ZeroOrder(
        model.named_parameters(), 1e-3, 1e-2, model=model, placement=placement(), **options
    )
    out = []
    for _ in range(steps):
        optimizer.step(BatchLoss(scorer, [batch]))
        out.append(optimizer.last.losses)
    return out


def calls_of(model: nn.Module) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


@pytest.mark.usefixtures("anyhow")
@pytest.mark.parametrize("name", CAUSAL)
def test_losses_are_those_of_the_plain_way(name: str) -> None:
    for placement in PLACEMENTS if name == "opt" else PLACEMENTS[:2]:
        model = model_of(name)
        plain = losses(model_of(name), False, placement)
        seen = calls_of(model)
        found = losses(model, True, placement)
        assert plain[0][0] != plain[0][1]
        for a, b in zip(plain, found, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
        copies = 2 if placement is Paired else 1
        assert seen == [(3 * copies, 40), (8 * copies, 16)] * (4 // copies)


@pytest.mark.usefixtures("anyhow")
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_every_tuning_mode_has_the_losses_of_the_plain_way(name: str, tmp_path: Path) -> None:
    families.save(name, tmp_path)
    for kind in KINDS:
        if kind == "bitfit" and FAMILIES[name].no_biases:
            continue
        for placement in PLACEMENTS[:2]:
            both = [
                losses(
                    load_model(section(tmp_path, name, tuning={"kind": kind}), 0).model,
                    share, placement, 1, SHORT,
                )
                for share in (False, True)
            ]  # fmt: skip
            assert both[0][0] == pytest.approx(both[1][0], abs=1e-5), (kind, placement)


@pytest.mark.usefixtures("anyhow")
def test_layers_that_stand_still_go_together_with_it() -> None:
    options = {"mask": LayerMask(0.5, always_active=["head", "final_norm"])}
    both = [losses(model_of("llama"), share, Paired, 6, **options) for share in (False, True)]
    for a, b in zip(*both, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_groups_by_hand() -> None:
    long = [example(600, (2, 2), seed) for seed in range(3)] + [example(590, (2, 2, 2), 3)]
    # Nine rows of 608, four of them in a group at most: two prompts, one, and the last alone.
    found = groups_of(long, 608, 0.5)
    assert found == (
        Span(0, 4, 599, 608, (0, 2), 8), Span(4, 2, 599, 608, (0,), 4),
        Span(6, 3, 589, 608, (0,), 6),
    )  # fmt: skip
    assert [span.num_tokens for span in found] == [2 * 599 + 4 * 9, 599 + 2 * 9, 589 + 3 * 19]
    # All in one: as far as the shortest prompt goes.
    assert groups_of(long, 608, 1.0) == (Span(0, 9, 589, 608, (0, 2, 4, 6), 18),)
    assert groups_of(long, 608, 0.3) == ()  # three rows of one example are a third
    single = [example(600, (2,), seed) for seed in range(8)]
    assert groups_of(single, 608, 1.0) == ()  # nothing to share
    assert groups_of([*long, *single], 608, 1.0) == ()  # too little of it
    assert groups_of([example(40, (2, 2, 2), 0)], 48, 1.0) == ()  # too short to be worth passes


def test_the_cache_is_no_larger_than_what_a_plain_pass_holds() -> None:
    model = model_of("llama")  # 2 layers of 2 heads of 4 for keys and as many for values
    assert CausalScorer(model, 1).shared.most == shared.LIVE * 16 / (2 * 2 * 2 * 4)
    model.config.num_hidden_layers = 40
    assert CausalScorer(model, 1).shared.most == shared.LIVE * 16 / (2 * 40 * 2 * 4)


@pytest.mark.usefixtures("anyhow")
def test_only_known_models_without_a_graph_and_with_weights_in_place() -> None:
    model = model_of("opt")
    scorer = CausalScorer(model, pad_id=1)
    batch = scorer.batch(EXAMPLES, trains=True)
    seen = calls_of(model)
    BatchLoss(scorer, [batch], OPTIONS).backward()
    assert seen == [(8, 56)]
    assert scorer.batch(EXAMPLES).groups == ()
    scorer.shares = False
    assert scorer.batch(EXAMPLES, trains=True).groups == ()
    model.config.model_type = "another"
    assert CausalScorer(model, pad_id=1).batch(EXAMPLES, trains=True).groups == ()


def test_preempted_equals_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyhow: None
) -> None:
    words = ["good", "bad", "fine", "slow", "warm", "long", "great", "dull"]
    draw = random.Random(3)
    for split in ("train", "dev", "test"):
        rows = [
            {
                "text": " ".join(draw.choices(words, k=30)),
                "choices": [" ".join(draw.choices(words, k=3)) for _ in range(4)],
                "label": draw.randrange(4),
            }
            for _ in range(12)
        ]
        tmp_path.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = (
        "task=multiple_choice", f"task.path={tmp_path}", 'task.template="{text} So"',
        "task.choices=[' {choice}']", "task.choices_column=choices", "train.batch_size=4",
        "train.steps=6", "optimizer/placement=paired",
    )  # fmt: skip
    asked: list[int] = []
    real = shared.groups_of
    monkeypatch.setattr(shared, "groups_of", lambda *a: asked.append(len(real(*a))) or real(*a))
    whole, broken = (prepare(tmp_path / name, *options) for name in ("whole", "broken"))
    expected = run_dir(whole)
    assert set(asked) == {1}  # step after step
    asks_at(monkeypatch, {3})
    with process.stop_signals_caught(), pytest.raises(process.Preempted):
        run_dir(broken)
    got = run_dir(broken)
    assert got["weights_hash"] == expected["weights_hash"]
    assert exact_rows(broken) == exact_rows(whole)
    assert journal_text(broken) == journal_text(whole)
