"""Every model family × tuning mode × objective builds and takes two steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests import families
from tests.families import FAMILIES
from tests.test_families import section
from zolab import compose
from zolab.config import check_tree
from zolab.errors import UserError
from zolab.models.load import load_model
from zolab.models.tuning import KINDS
from zolab.objectives import (
    ACCURACY,
    LIKELIHOODS,
    BatchLoss,
    CausalScorer,
    Encoder,
    Generator,
    MaskedEncoder,
    MaskedScorer,
    NegativeF1,
)
from zolab.optim import Paired, ZeroOrder
from zolab.optim.selfcheck import settle_placement
from zolab.tasks import Example

#: What does not go together, and why. Everything else must train.
HOLES = {
    ("no biases", "bitfit"): "the family has no bias to train; the mode is refused with its name",
    ("masked", "f1"): "a masked model does not generate; planning refuses the pair",
    ("masked", "lm"): "a masked model predicts label words, not a text; planning refuses the pair",
}
OBJECTIVES = ("options", "lm", "accuracy", "f1")
TEXTS = (("the movie was a joy", 1), ("dull , slow and far too long for what it says", 0))


def examples(masked: bool) -> list[Example]:
    words, suffix = (" No", " Yes"), " ." if masked else ""
    return [
        Example(f"{text} . It was", words, label, suffix=suffix, answers=(words[label].strip(),))
        for text, label in TEXTS
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: families.save(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_of_every_objective(folders: dict[str, Path], name: str, kind: str) -> None:
    family = FAMILIES[name]
    config = section(folders[name], name, tuning={"kind": kind})
    if family.no_biases and ("no biases", kind) in HOLES:
        with pytest.raises(UserError, match="has no biases to train"):
            load_model(config, 0)
        return
    loaded = load_model(config, 0)
    tokenizer, limit = loaded.tokenizer, loaded.max_length
    if family.masked:
        encoder, cls = MaskedEncoder(tokenizer, limit), MaskedScorer
    else:
        encoder, cls = Encoder(tokenizer, limit, 2), CausalScorer
    scorer = cls(loaded.model, tokenizer.pad_token_id, None, limit)
    batch = scorer.batch(encoder(examples(family.masked)))
    made = {**LIKELIHOODS, "accuracy": ACCURACY, "f1": NegativeF1(Generator(tokenizer, 2))}
    taken = []
    for objective in OBJECTIVES:
        if family.masked and ("masked", objective) in HOLES:
            continue
        closure = BatchLoss(scorer, [batch], made[objective])
        optimizer = ZeroOrder(
            loaded.model.named_parameters(), lr=1e-4, model=loaded.model, placement=Paired()
        )
        settle_placement(optimizer, closure)
        # every pair works in one batch: a fallback would only show as a slower run
        assert optimizer.placement.name == "paired"
        for _ in range(2):
            assert math.isfinite(optimizer.step(closure))
        taken.append(objective)
    assert len(taken) == (2 if family.masked else 4)


@pytest.mark.parametrize("objective", [second for first, second in HOLES if first == "masked"])
def test_planning_refuses_what_a_masked_model_has_no_form_of(objective: str) -> None:
    task = "squad" if objective == "f1" else "uci_sent"
    overrides = ["model.kind=masked", f"train.objective={objective}", f"task={task}"]
    with pytest.raises(UserError, match="a masked model"):
        check_tree(compose.resolve(compose.compose(overrides)))
