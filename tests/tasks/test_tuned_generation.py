"""Generation with trained prefixes, prompts and adapters equals decoding without a cache."""

from __future__ import annotations

import pytest
import torch

from zolab import compose
from zolab.models.load import load_model
from zolab.objectives import CausalScorer, Encoder, Generator
from zolab.tasks import Example

EXAMPLES = [
    Example("the movie was", (" good\n",), 0, answers=("good",)),
    Example("I went to see the film last night and it", (" was\n",), 0, answers=("was",)),
]


@pytest.mark.parametrize("tuning", ["lora", "prefix", "prompt", "head", "bitfit", "tensor_train"])
def test_answers_equal_plain_decoding(tuning: str) -> None:
    cell = compose.check(compose.compose([f"model/tuning={tuning}", "task=uci_sent"]))
    loaded = load_model(cell["model"], 0)
    model, tokenizer = loaded.model, loaded.tokenizer
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and tuning != "prefix":
                parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num())
    generator = Generator(tokenizer, 8)
    scorer = CausalScorer(model, tokenizer.pad_token_id)
    encoded = Encoder(tokenizer, 128, 8)(EXAMPLES)
    (texts,) = generator.texts(scorer, scorer.batch(encoded).prompts)
    for text, one in zip(texts, encoded, strict=True):
        ids = torch.tensor([one.prompt])
        with torch.inference_mode():
            for _ in range(8):
                new = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
                ids = torch.cat((ids, new.view(1, 1)), dim=1)
                if int(new) == tokenizer.eos_token_id:
                    break
        said = tokenizer.decode(ids[0, len(one.prompt) :], skip_special_tokens=True)
        assert text == said.split("\n")[0].strip()
