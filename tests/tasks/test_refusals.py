"""Settings that do not go together with a task, a model or an objective: one sentence each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.tasks import own_rows, tiny_masked
from zolab import assets, compose
from zolab.config.cross_tasks import TASK_CHECKS
from zolab.errors import UserError
from zolab.objectives import Encoder, MaskedEncoder
from zolab.tasks import Example


def refused(folder: Path, task: str, *overrides: str) -> str:
    data = f"task.path={own_rows.write(task, folder)}"
    config = compose.compose(compose.prepare_overrides([f"task={task}", data, *overrides]))
    with pytest.raises(UserError) as caught:
        compose.check(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("squad", ["train.objective=options"], "train.objective = 'options': task squad (generati"),
        ("sst2", ["train.objective=f1"], "task sst2 (classification) has none; expected auto, opt"),
        ("sst2", ["train.objective=accuracy", "optimizer=adamw"], "has no gradient, and optimizer"),
        ("squad", ["train.objective=f1", "optimizer=forward_grad"], "has no gradient, and optimi"),
        ("squad", ["train.select_by=accuracy"], "train.select_by = 'accuracy': task squad (genera"),
        ("rte", ["train.select_by=f1"], "has no such metric; expected loss or accuracy"),
        ("copa", ["optimizer=zero_shot_calibrated"], "no label words that all rows share"),
        ("sst2", ["task.template='{sentence:upper}'"], "'upper' is not a filter"),
        ("sst2", ["task.template='{text}'"], "train.jsonl:1: no field 'text'; the row has idx, la"),
        ("sst2", ["task.template='{sentence} {mask}'"], "{mask} belongs into task.masked.templat"),
        ("sst2", ["task.masked.template='{sentence}'"], "expected {mask} once, where the model an"),
        ("sst2", ["task.masked.template='{mask} {mask}'"], "expected {mask} once"),
        ("sst2", ["task.masked.field=text"], "task.masked.field = 'text': not a field of"),
        ("sst2", ["task.masked.label_words=[' a']"], "at least two different words"),
        ("sst2", ["task.masked.label_words=[' a',' b',' c']"], "expected 2 words, as many as in"),
        ("sst2", ["task.label_values=[0]"], "task.label_values = [0]: expected 2 different values"),
        ("sst2", ["task.hub.nme=x"], "task.hub.nme = 'x': unknown key; did you mean 'name'?"),
        ("copa", ["task.choices=['{choice1}']"], "expected at least two different answers"),
        ("copa", ["task.choices_column=all"], "with task.choices_column expected one answer with"),
        ("copa", ["task.choices=['a','{choice1}']"], "task.choices[0] = 'a': expected at least on"),
        ("copa", ["task.maps={question: because}"], "task.maps.question = 'because': expected wh"),
        ("squad", ["task.answer=' yes'"], "task.answer = ' yes': expected {answer} in it and no o"),
        ("squad", ["task.k=16"], "task.k = 16: unknown key"),
    ],
)
def test_refused_before_anything_is_queued(
    task: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refused(tmp_path / "data", task, *overrides)


def test_a_task_without_data_is_refused() -> None:
    config = compose.compose(["task=clinc10"])
    with pytest.raises(UserError, match=r"task\.path must be given: a folder .* task\.hub\.name"):
        compose.check(config)


@pytest.mark.parametrize("task", ["copa", "record", "squad", "drop"])
def test_a_masked_model_takes_classification_only(task: str, tmp_path: Path) -> None:
    data = f"task.path={own_rows.write(task, tmp_path / 'data')}"
    cell = compose.check(compose.compose(["optimizer=mezo", f"task={task}", f"++{data}"]))
    cell["model"]["kind"] = "masked"
    said = [sentence for rule in TASK_CHECKS if (sentence := rule(cell))]
    assert len(said) == 1
    assert said[0].startswith(f"task = {task}: a masked model answers with one label word")


def test_label_words_must_be_one_token_under_a_mask(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_masked.save(tmp_path)))
    encode = MaskedEncoder(tokenizer, 64)
    with pytest.raises(UserError, match=r"label_words: ' dreadful' is \d tokens of this model \('"):
        encode([Example("It was ", (" dreadful", " great"), 0)])
    with pytest.raises(UserError, match="have the same tokens"):
        encode([Example("It was ", (" great", " great"), 0)])
    with pytest.raises(UserError, match=r"holds the mask token '<mask>' itself"):
        encode([Example("It <mask> was ", (" terrible", " great"), 0)])
    causal = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    with pytest.raises(UserError, match="the tokenizer has no mask token"):
        MaskedEncoder(causal, 64)


def test_label_words_are_looked_over_while_planning(tmp_path: Path) -> None:
    masked = (f"model.path={tiny_masked.save(tmp_path / 'model')}", "model.kind=masked")
    words = "task.masked.label_words=[' dreadful',' great']"
    message = refused(tmp_path / "data", "sst2", *masked, words)
    assert re.match(r"task\.masked\.label_words: ' dreadful' is \d tokens of model\.path", message)
    message = refused(tmp_path / "data", "sst2", "task.label_words=[' Great',' great']")
    assert message.startswith("task.label_words: ' Great' and ' great' have the same tokens")
    given = ["task=sst2", f"task.path={tmp_path / 'data'}", *masked]
    compose.check(compose.compose(compose.prepare_overrides(given)))  # its own words are fine


def test_candidates_with_the_same_tokens_are_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    with pytest.raises(UserError, match="candidates ' a' and ' a' have the same tokens"):
        Encoder(tokenizer, 64)([Example("x", (" a", " a"), 0)])
    with pytest.raises(UserError, match=r"task\.max_new_tokens = 50: no room for a prompt"):
        Encoder(tokenizer, 51, 50)


def test_spellings_of_one_entity_are_one_candidate() -> None:
    """The embedded model knows no capitals."""
    tokenizer = AutoTokenizer.from_pretrained(str(assets.model_dir("opt-prompt-2m")))
    names = (" in Oslo", " in OSLO", " in Bergen", " in bergen", " in Rome")
    (merged,) = Encoder(tokenizer, 64)([Example("it was", names, 3, right=(1, 3))])
    words = [tokenizer.decode(c.targets).strip() for c in merged.candidates]
    assert words == ["in oslo", "in bergen", "in rome"]
    assert (merged.label, merged.right) == (1, (0, 1))
    with pytest.raises(UserError, match="' in Oslo' and ' in OSLO' have the same tokens"):
        Encoder(tokenizer, 64)([Example("it was", names[:2], 0)])


def test_a_long_text_keeps_mask_and_ends(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_masked.save(tmp_path)))
    begin, end, mask = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id
    words = (" terrible", " great")
    for example in (
        Example("far too long for this " * 5 + "It was ", words, 0, suffix="."),
        Example("", words, 0, suffix=": far too long for this" * 5),
        Example("a long text and then " * 5, words, 0, suffix=", a long text too" * 5),
    ):
        (whole,) = MaskedEncoder(tokenizer, 1000)([example])
        (cut,) = MaskedEncoder(tokenizer, 24)([example])
        assert (whole.truncated, cut.truncated) == (False, True)
        (row,) = cut.rows
        assert len(row) == 24
        assert (row[0], row[-1]) == (begin, end)
        place = cut.candidates[0].positions[0]
        assert row[place] == mask
        full = whole.rows[0]
        middle = whole.candidates[0].positions[0]
        assert list(row[1:-1]) == list(full[middle - place + 1 : middle + 23 - place])


def test_the_named_field_is_shortened_at_its_end(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_masked.save(tmp_path)))
    example = Example(
        "one two three four? ", (" Yes", " No"), 0, suffix=", so it is.", field="one two three four"
    )
    (short,) = MaskedEncoder(tokenizer, 1000, field_length=7)([example])
    ids = tokenizer("one two three four", add_special_tokens=False)["input_ids"][:7]
    text = tokenizer.decode(ids)
    assert short.truncated
    assert list(short.rows[0]) == tokenizer(f"{text.strip()}? <mask>, so it is.")["input_ids"]
    (same,) = MaskedEncoder(tokenizer, 1000, field_length=100)([example])
    assert not same.truncated
