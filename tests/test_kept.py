"""What frozen lower layers make of a run's rows is kept over its epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from tests.test_lower import model_of
from tests.test_preempted_run import asks_at
from tests.test_resume import exact_rows, journal_text, prepare
from tests.test_shared import EXAMPLES
from zolab import process
from zolab.errors import UserError
from zolab.models.tuning.subset import Head
from zolab.objectives import BatchLoss, Candidate, CausalScorer, Encoded, MaskedScorer, Scorer
from zolab.optim import InPlace, LayerMask, Paired, ZeroOrder
from zolab.optim.offload.blocks import find_blocks
from zolab.run import run_dir

GB = 1e9
#: One scored token each, in the middle of the text.
MASKED = [
    Encoded(
        (e.rows[0],),
        tuple(Candidate(0, (5,), c.targets[:1]) for c in e.candidates),
        e.label,
        truncated=False,
    )
    for e in EXAMPLES
]


def frozen_below(name: str, head: bool) -> nn.Module:
    """A model whose output layer trains, or the second of its two layers."""
    model = model_of(name)
    if head:
        Head().apply(model, 0)
    else:
        moving = {id(p) for p in find_blocks(model)[1].module.parameters()}
        for p in model.parameters():
            p.requires_grad_(id(p) in moving)
    return model


def scorer_of(model: nn.Module, name: str = "opt") -> tuple[Scorer, list[Encoded]]:
    masked = FAMILIES[name].masked
    return (MaskedScorer if masked else CausalScorer)(
        model, pad_id=1
    ), MASKED if masked else EXAMPLES


def optimizer_of(model: nn.Module, placement: type = InPlace, **options) -> ZeroOrder:
    return ZeroOrder(
        model.named_parameters(), 1e-3, 1e-2, model=model, placement=placement(), **options
    )


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def losses(optimizer: ZeroOrder, scorer: Scorer, batches: list[list[Encoded]]) -> list:
    out = []
    for batch in batches:
        optimizer.step(BatchLoss(scorer, [scorer.batch(batch)]))
        out.append(optimizer.last.losses)
    return out


def calls_of(model: nn.Module) -> list[int]:
    """Rows that pass the first layer's first product, call by call."""
    seen: list[int] = []
    first = next(m for m in find_blocks(model)[0].module.modules() if hasattr(m, "weight"))
    first.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_the_plain_way(name: str, head: bool) -> None:
    for placement in (InPlace, Paired):
        found = []
        for keep in (False, True):
            model = frozen_below(name, head)
            scorer, examples = scorer_of(model, name)
            if keep:
                kept, number = scorer.keep(trained(model), [examples], GB)
                assert (kept.start, number) == (2 if head else 1, 1)
            calls = calls_of(model)
            found.append(losses(optimizer_of(model, placement), scorer, [examples] * 3))
        assert len(calls) == sum(len(e.rows) for e in examples)  # each row once, and never again
        for a, b in zip(*found, strict=True):
            assert a == pytest.approx(b, abs=1e-6)


def test_neither_company_nor_what_was_seen_before_changes_a_bit() -> None:
    """The third step of one run is the first of another, which has seen nothing."""
    a, b, c = EXAMPLES
    found = []
    for before in ([[a, b], [b, c]], [[c], [a]]):
        model = frozen_below("llama", head=False)
        scorer, _ = scorer_of(model)
        scorer.keep(trained(model), [EXAMPLES], GB)
        optimizer = optimizer_of(model, Paired)
        optimizer.param_groups[0]["lr"] = 0.0
        losses(optimizer, scorer, before)
        optimizer.num_steps = 2
        found.append(losses(optimizer, scorer, [[c, a]]))
    assert found[0] == found[1]
    scores = []
    with torch.inference_mode():
        for batch in ([a], [a, c], [a, b, c]):
            scores.append(scorer.kept._states(scorer.batch(batch))[:3, :43].clone())
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_only_splits_that_fit_whole_are_kept_and_others_go_the_plain_way() -> None:
    model = frozen_below("opt", head=False)
    scorer, _ = scorer_of(model)
    width = 16 * 4
    first = width * sum(len(row) for row in EXAMPLES[0].rows)
    both = width * sum(len(row) for e in EXAMPLES[:2] for row in e.rows)
    for limit, number, size in ((first - 1, 0, 0), (first, 1, first), (both, 2, both)):
        kept, fit = scorer.keep(trained(model), [EXAMPLES[:1], EXAMPLES[1:2]], limit)
        assert (fit, kept.num_bytes, kept.num_wanted) == (number, size, first)
        assert (scorer.kept is None) == (number == 0)
    optimizer = optimizer_of(model)
    losses(optimizer, scorer, [EXAMPLES[:2]] * 2)
    assert sum(t.numel() * t.element_size() for t in kept._kept.values()) == kept.num_bytes == both
    calls = calls_of(model)
    plain = optimizer_of(frozen_below("opt", head=False))
    other, _ = scorer_of(plain._model)
    expected = losses(plain, other, [EXAMPLES[:2]] * 2 + [EXAMPLES])
    assert losses(optimizer, scorer, [EXAMPLES])[0] == pytest.approx(expected[2], abs=1e-6)
    assert calls == [9, 9]  # one row is in neither split: the whole batch, for each sign


def test_scored_places_are_all_that_is_kept_for_a_head() -> None:
    model = frozen_below("opt", head=True)
    scorer, _ = scorer_of(model)
    kept, _ = scorer.keep(trained(model), [EXAMPLES], GB)
    targets = sum(len(c.targets) for e in EXAMPLES for c in e.candidates)
    assert kept.num_bytes == 16 * 4 * targets


def test_a_weight_that_changes_below_is_noticed() -> None:
    found = []
    for keep in (False, True):
        model = frozen_below("opt", head=False)
        scorer, _ = scorer_of(model)
        if keep:
            scorer.keep(trained(model), [EXAMPLES], GB)
        optimizer = optimizer_of(model)
        found.append(losses(optimizer, scorer, [EXAMPLES]))
        with torch.no_grad():
            find_blocks(model)[0].module.fc1.weight.mul_(2.0)
        found[-1] += losses(optimizer, scorer, [EXAMPLES])
        embedding = model.get_input_embeddings().weight
        embedding.data = embedding.data * 2.0
        found[-1] += losses(optimizer, scorer, [EXAMPLES])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert len({a[0] for a in found[0]}) == 3


def test_nothing_is_kept_where_something_moves_below_or_the_model_is_unknown() -> None:
    model = frozen_below("opt", head=False)
    scorer, _ = scorer_of(model)
    below = model.model.decoder.embed_positions.weight
    assert scorer.keep([*trained(model), below], [EXAMPLES], GB)[0].start == 0
    lowest = find_blocks(model)[0].module.fc1.bias
    assert scorer.keep([*trained(model), lowest], [EXAMPLES], GB)[0].start == 0
    model.config.model_type = "another"
    assert scorer.keep(trained(model), [EXAMPLES], GB)[0].start == 0
    assert scorer.kept is None


def test_a_mask_of_layers_above_goes_with_it() -> None:
    """What a mask leaves alone in a step passes once for both signs, also above what is kept."""
    from transformers import LlamaConfig, LlamaForCausalLM

    found = []
    for keep in (False, True):
        torch.manual_seed(3)
        config = {**FAMILIES["llama"].config, "num_hidden_layers": 4}
        model = LlamaForCausalLM(LlamaConfig(**config)).eval()
        model.requires_grad_(False)
        model.model.layers[1:].requires_grad_(True)
        scorer, _ = scorer_of(model)
        if keep:
            assert scorer.keep(trained(model), [EXAMPLES], GB)[0].start == 1
        rows: list[int] = []
        model.model.layers[2].register_forward_hook(lambda m, a, out, r=rows: r.append(len(a[0])))
        optimizer = optimizer_of(model, Paired, mask=LayerMask(0.66))
        found.append(losses(optimizer, scorer, [EXAMPLES] * 6))
        assert set(rows) == {9, 18}
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_gradients_go_the_plain_way() -> None:
    model = frozen_below("opt", head=False)
    scorer, _ = scorer_of(model)
    scorer.keep(trained(model), [EXAMPLES], GB)
    calls = calls_of(model)
    BatchLoss(scorer, [scorer.batch(EXAMPLES)]).backward()
    assert calls == [9]
    assert all(p.grad is not None for p in trained(model))


def test_preempted_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        "model/tuning=lora", "model.tuning.targets=[layers.1.self_attn.q_proj]", "train.steps=12",
        "train.keep_lower_gb=0.1", "optimizer.lr=1e-2", "task.num_train=24", "train.log_every=1",
    )  # fmt: skip
    whole, broken = (prepare(tmp_path / name, *options) for name in ("whole", "broken"))
    expected = run_dir(whole)
    asks_at(monkeypatch, {5, 8})
    for _ in range(2):
        with process.stop_signals_caught(), pytest.raises(process.Preempted):
            run_dir(broken)
    got = run_dir(broken)
    assert got["weights_hash"] == expected["weights_hash"]
    assert exact_rows(broken) == exact_rows(whole)
    assert journal_text(broken) == journal_text(whole)


def test_a_limit_that_is_too_small_and_modes_that_move_everything_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"keep_lower_gb = 1e-06: the 40 training examples need"):
        run_dir(prepare(tmp_path, "model/tuning=head", "train.keep_lower_gb=1e-6"))
    with pytest.raises(UserError, match=r"keep_lower_gb = 1: .*has no layer below all that trains"):
        run_dir(prepare(tmp_path, "model/tuning=lora", "train.keep_lower_gb=1"))
    for options, told in (
        (("model/tuning=prefix",), "model.tuning.kind = 'prefix' trains the lowest layer"),
        (("model/tuning=head", "optimizer=adamw"), "optimizer adamw needs derivatives"),
        (("model/tuning=head", "optimizer/placement=offload"), "placement offload"),
    ):
        with pytest.raises(UserError, match=told):
            prepare(tmp_path, "train.keep_lower_gb=1", *options)
