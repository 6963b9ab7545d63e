"""transformers is spared a search for several sequences in a row, and finds the same without it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from transformers import masking_utils

from tests.test_lower import model_of
from tests.test_shared import EXAMPLES
from zolab.objectives import BatchLoss, CausalScorer, scorers
from zolab.objectives.one_sequence import one_sequence


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_losses_are_those_of_a_search(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(
        masking_utils,
        "find_packed_sequence_indices",
        lambda position_ids: asked.append(1) or real(position_ids),
    )
    scorer = CausalScorer(model_of(family), pad_id=1)
    loss = BatchLoss(scorer, [scorer.batch(EXAMPLES)])
    found = loss(2)
    assert not asked
    monkeypatch.setattr(scorers, "one_sequence", nullcontext)
    assert loss(2) == found
    assert asked


def test_the_search_is_there_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    real = masking_utils.find_packed_sequence_indices

    @one_sequence()
    def broken() -> None:
        assert masking_utils.find_packed_sequence_indices is not real
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert masking_utils.find_packed_sequence_indices is real
    monkeypatch.delattr(masking_utils, "find_packed_sequence_indices")
    with one_sequence():  # a version without it
        assert not hasattr(masking_utils, "find_packed_sequence_indices")
