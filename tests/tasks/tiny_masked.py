"""A tiny random RoBERTa whose tokenizer holds every label word as one token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.tasks import own_rows
from zolab import compose

_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_MASK = AddedToken("<mask>", lstrip=True, special=True)
_SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 260, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "type_vocab_size": 1,
}  # fmt: skip


def label_words() -> list[str]:
    """The label words of every classification task under a mask."""
    words: list[str] = []
    for task in own_rows.TASKS:
        section = compose.resolve(compose.compose([f"task={task}"]))["task"]
        if section["kind"] == "classification":
            words += section["masked"]["label_words"] or section["label_words"]
    return sorted(set(words))


def save(folder: Path) -> Path:
    """Write model and tokenizer as a release has them; returns the folder."""
    from transformers import AutoModelForMaskedLM, RobertaConfig

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*_SPECIAL[:4], _MASK],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["".join(label_words())] * 50, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "cls": 0, "sep": 2}
    settings = {f"{name}_token": _SPECIAL[place] for name, place in names.items()}
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False,
            "normalized": False, "single_word": False, "special": True}  # fmt: skip
    settings |= {"mask_token": mask, "tokenizer_class": "RobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = RobertaConfig(vocab_size=tokenizer.get_vocab_size(), **_SHAPE)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder
