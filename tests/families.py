"""Tiny random models of every family, with tokenizers that behave like the family's own.

A tokenizer is trained on a few sentences and saved under the class name that the family's releases
carry, so that transformers reads it by that class's rules.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "the movie was a joy from its first scene to the last . It was great",
    "dull , slow and far too long for what it has to say . It was terrible",
    "Yes or No ? Maybe the plot is thin , but the cast is good .",
    "Suppose it rains all day long . Can we infer that the streets are wet ? Yes No Maybe",
] * 4
_SMALL = {
    "vocab_size": 448,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 24,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 4}
_GPT2 = {"vocab_size": 448, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        config: of its tiny model, without `model_type`.
        style: which of the tokenizers below.
        tokenizer_class: as in the releases' tokenizer_config.json.
        adds_bos: whether the tokenizer itself puts its begin token before a text, as it does in
            some releases and not in others.
        bos: whether the model is trained with one.
        masked: whether it is a masked model.
        no_biases: nothing for BitFit to train.
    """

    config: dict[str, Any]
    style: str
    tokenizer_class: str
    adds_bos: bool = False
    bos: bool = False
    masked: bool = False
    no_biases: bool = False


_LLAMA_LIKE = {"bos": True, "adds_bos": True, "no_biases": True}
FAMILIES = {
    "opt": Family(
        {**_SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, "bytes", "GPT2Tokenizer", bos=True
    ),
    "gpt2": Family(_GPT2, "bytes", "GPT2Tokenizer"),
    "gpt_neox": Family(_SMALL, "bytes", "GPTNeoXTokenizer"),
    "llama": Family(_GROUPED, "sentencepiece", "LlamaTokenizer", **_LLAMA_LIKE),
    "mistral": Family(_GROUPED, "sentencepiece", "LlamaTokenizer", bos=True, no_biases=True),
    "qwen2": Family(_GROUPED, "bytes", "Qwen2Tokenizer"),
    "qwen3": Family(_GROUPED, "bytes", "Qwen2Tokenizer", no_biases=True),
    "gemma": Family(_GROUPED, "sentencepiece", "GemmaTokenizer", **_LLAMA_LIKE),
    "gemma2": Family(
        {**_GROUPED, "sliding_window": 32}, "sentencepiece", "GemmaTokenizer", **_LLAMA_LIKE
    ),
    "gemma3_text": Family(
        {**_GROUPED, "sliding_window": 32}, "sentencepiece", "GemmaTokenizer", **_LLAMA_LIKE
    ),
    "phi": Family(_SMALL, "bytes", "CodeGenTokenizer"),
    "phi3": Family(
        {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0},
        "sentencepiece",
        "TokenizersBackend",
        no_biases=True,
    ),
    "roberta": Family(
        {**_SMALL, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        "roberta",
        "RobertaTokenizer",
        masked=True,
    ),
    "bert": Family(_SMALL, "bert", "BertTokenizer", masked=True),
}


def save(name: str, folder: Path) -> Path:
    """A folder with a tiny random model of a family and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = FAMILIES[name]
    auto = AutoModelForMaskedLM if family.masked else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = auto.from_config(CONFIG_MAPPING[name](**family.config))
    model.save_pretrained(folder)
    save_tokenizer(family, folder)
    return folder


def save_tokenizer(family: Family, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json as a release has them."""
    text, special = _trained(family.style)
    tokenizer = Tokenizer.from_str(text)
    if family.adds_bos:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**special, "tokenizer_class": family.tokenizer_class}
    if family.adds_bos:
        config["add_bos_token"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@functools.cache
def _trained(style: str) -> tuple[str, dict[str, str]]:
    return {
        "bytes": _bytes,
        "sentencepiece": _sentencepiece,
        "roberta": _roberta,
        "bert": _bert,
    }[style]()


def _bytes() -> tuple[str, dict[str, str]]:
    """Byte-level BPE: OPT, GPT-2, GPT-NeoX, Qwen, Phi. No padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str(), {"bos_token": end, "eos_token": end, "unk_token": end}


def _sentencepiece() -> tuple[str, dict[str, str]]:
    """BPE over words that begin with ▁, unknown bytes spelt out: LLaMA, Mistral, Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    words = [f"▁{word}" for line in CORPUS for word in line.split()]
    tokenizer.normalizer, kept = None, tokenizer.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.normalizer, tokenizer.pre_tokenizer = kept, None
    return tokenizer.to_str(), {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def _roberta() -> tuple[str, dict[str, str]]:
    """Byte-level BPE between <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=[*names[:4], AddedToken("<mask>", lstrip=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    keys = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    return tokenizer.to_str(), dict(zip(keys, names, strict=True)) | {
        "bos_token": "<s>",
        "eos_token": "</s>",
    }


def _bert() -> tuple[str, dict[str, str]]:
    """Lower-cased word pieces between [CLS] and [SEP]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=448, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return tokenizer.to_str(), dict(zip(keys, names, strict=True))
