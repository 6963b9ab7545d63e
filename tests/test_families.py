"""Tokenizer differences between families: begin token, padding, leading space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import families
from tests.families import FAMILIES
from zolab.errors import UserError
from zolab.models.load import LoadedModel, load_model
from zolab.models.tokenizers import frame, settle_tokenizer
from zolab.objectives import CausalScorer, Encoder, MaskedEncoder, MaskedScorer
from zolab.tasks import Example

EXAMPLES = [
    Example("the movie was a joy . It was", (" terrible", " great"), 1),
    Example("dull , slow and far too long for what it has to say .\n", ("Yes", "No"), 0),
]
MASKED = [
    Example("the movie was a joy . It was", (" terrible", " great"), 1, suffix=" ."),
    Example("slow . It was", (" terrible", " great"), 0, suffix=" ."),
]


def section(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The `model` section of a cell for a family's tiny model."""
    return {
        "path": str(folder),
        "init": "pretrained",
        "revision": None,
        "dtype": "float32",
        "config": {},
        "shape": {},
        "kind": "masked" if FAMILIES[name].masked else "causal",
        "bos": "auto",
        "attn_implementation": None,
        "device": "cpu",
        "device_map": None,
        "tuning": {"kind": "full"},
        **changes,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: families.save(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def load(folders: dict[str, Path], name: str, **changes: Any) -> LoadedModel:
    return load_model(section(folders[name], name, **changes), 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_begin_token_is_there_once_where_the_family_has_one(
    folders: dict[str, Path], name: str
) -> None:
    tokenizer = load(folders, name).tokenizer
    before, behind = frame(tokenizer)
    if FAMILIES[name].masked:
        assert (before, behind) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
        return
    assert behind == []
    assert before == ([tokenizer.bos_token_id] if FAMILIES[name].bos else [])
    for text in ("", " a", "two words"):
        ids = tokenizer(text)["input_ids"]
        assert ids[: len(before)] == before
        assert tokenizer.bos_token_id not in ids[len(before) :]


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].masked])
def test_scored_tokens_spell_the_candidates(folders: dict[str, Path], name: str) -> None:
    loaded = load(folders, name)
    encoded = Encoder(loaded.tokenizer, loaded.max_length)(EXAMPLES)
    for example, got in zip(EXAMPLES, encoded, strict=True):
        for text, candidate in zip(example.candidates, got.candidates, strict=True):
            row = got.rows[candidate.row]
            before = loaded.tokenizer.decode([*row[: candidate.positions[0] + 1]])
            whole = loaded.tokenizer.decode([*row, candidate.targets[-1]])
            assert whole.endswith(text)
            assert not before.endswith(text)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_no_score(folders: dict[str, Path], name: str) -> None:
    """A row alone scores as in a batch with a longer one; the padding token is in the embedding."""
    loaded = load(folders, name)
    assert loaded.tokenizer.padding_side == "right"
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    assert 0 <= loaded.tokenizer.pad_token_id < rows
    masked = FAMILIES[name].masked
    encoder = (MaskedEncoder if masked else Encoder)(loaded.tokenizer, loaded.max_length)
    scorer = (MaskedScorer if masked else CausalScorer)(
        loaded.model, loaded.tokenizer.pad_token_id, None, loaded.max_length
    )
    encoded = encoder(MASKED if masked else EXAMPLES)
    assert len({e.length for e in encoded}) == 2
    with torch.inference_mode():
        together = scorer.scores(scorer.batch(encoded))[0]
        for i, example in enumerate(encoded):
            alone = scorer.scores(scorer.batch([example]))[0, 0]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


def test_a_begin_token_can_be_left_out_or_chosen(folders: dict[str, Path]) -> None:
    assert frame(load(folders, "llama", bos="never").tokenizer) == ([], [])
    other = load(folders, "llama", bos="<s>").tokenizer
    assert frame(other) == ([other.convert_tokens_to_ids("<s>")], [])
    with pytest.raises(UserError, match=r"model\.bos = '<boss>': expected .* did you mean '<bos>'"):
        load(folders, "llama", bos="<boss>")
    with pytest.raises(UserError, match=r"model\.bos = 'never': a masked model keeps the frame"):
        load(folders, "bert", bos="never")


def test_an_end_token_behind_a_text_is_taken_off(folders: dict[str, Path]) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    names = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=names
    )
    assert frame(tokenizer) == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    settle_tokenizer(tokenizer, "llama", "causal", 448)
    assert frame(tokenizer) == ([tokenizer.bos_token_id], [])


def test_a_saved_tokenizer_keeps_what_was_settled(folders: dict[str, Path], tmp_path: Path) -> None:
    """So an exported model reads a text as it did in the run."""
    from transformers import AutoTokenizer

    for name in ("opt", "mistral", "gpt_neox"):
        tokenizer = load(folders, name).tokenizer
        tokenizer.save_pretrained(tmp_path / name)
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        text = EXAMPLES[0].prompt
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("name", "kind"), [("bert", "causal"), ("llama", "masked")])
def test_a_model_of_the_other_kind_is_refused(
    folders: dict[str, Path], name: str, kind: str
) -> None:
    from zolab import compose

    cell = compose.resolve(compose.compose([f"model.path={folders[name]}", f"model.kind={kind}"]))
    other = "masked" if kind == "causal" else "causal"
    with pytest.raises(UserError, match=rf"model\.kind = '{kind}'.*use model\.kind={other}"):
        compose.check(cell)
    with pytest.raises(UserError):
        load(folders, name, kind=kind)
