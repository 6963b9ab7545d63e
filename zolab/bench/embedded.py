"""The embedded model with batches of the embedded task, as the demo trains on them."""

from __future__ import annotations

import torch
from torch import nn

from zolab import assets
from zolab.data import BatchOrder
from zolab.models.load import load_model
from zolab.objectives import Batch, Encoder, collate
from zolab.tasks import KINDS

MODEL = {"path": "opt-prompt-2m", "init": "pretrained", "revision": None, "config": {}}


def embedded(
    dtype: str, device: torch.device, rows: int, by: str = "auto"
) -> tuple[nn.Module, list[Batch]]:
    """The model, in eval mode, and the batches of one epoch, `rows` examples each.

    `by`: what multiplies its linear layers, as `model.linear`.
    """
    loaded = load_model({**MODEL, "dtype": dtype, "device": str(device), "linear": by}, seed=0)
    task = KINDS["classification"](
        name="uci_sent",
        path="uci_sent",
        template="{sentence} It was",
        label_words=[" terrible", " great"],
        label_column="label",
    )
    examples = task.load(assets.task_dir("uci_sent"))["train"]
    encoded = Encoder(loaded.tokenizer, loaded.max_length)(examples)
    order = BatchOrder([e.length for e in encoded], rows, seed=0)
    chosen = [order.batch(step) for step in range(1, order.per_epoch + 1)]
    pad = loaded.tokenizer.pad_token_id or 0
    return loaded.model, [collate([encoded[i] for i in b], pad, device) for b in chosen]
