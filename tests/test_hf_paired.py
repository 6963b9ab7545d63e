"""`Paired` inside Trainer: one forward over both copies, one loss each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from tests.optim.test_standalone import vit
from tests.test_integrations import train, trainer_of
from zolab.integrations.hf import ZOTrainer
from zolab.optim import MeZO, Paired, PerLayer


class TestPairedLosses:
    """One forward over both copies, one loss each."""

    def both(self, tmp_path: Path, **settings) -> None:
        runs = [train(trainer_of(tmp_path, name, **settings)) for name in ("per_layer", "paired")]
        for a, b in zip(runs[0].steps, runs[1].steps, strict=True):
            assert b.losses == pytest.approx(a.losses, abs=2e-6)

    def test_label_smoothing(self, tmp_path: Path) -> None:
        self.both(tmp_path, label_smoothing_factor=0.2)

    def test_a_loss_function_of_the_user(self, tmp_path: Path) -> None:
        def squares(outputs, labels, num_items_in_batch=None):
            return outputs.logits.float().square().sum() / num_items_in_batch

        self.both(tmp_path, options={"compute_loss_func": squares})

    def test_nothing_is_left_on_the_model(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, "paired")
        train(trainer)
        for module in trainer.model.modules():
            assert "_loss_function" not in module.__dict__
            assert "forward" not in module.__dict__

    def test_classification_of_images(self, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(5)
        data = [
            {"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 4}
            for i in range(8)
        ]
        runs = []
        for placement in (PerLayer(), Paired()):
            model = vit()
            optimizer = MeZO(model.named_parameters(), lr=1e-3, placement=placement, model=model)
            args = TrainingArguments(
                str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True,
                gradient_accumulation_steps=2, report_to=[], save_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            runs.append(
                train(ZOTrainer(model, args, train_dataset=data, optimizers=(optimizer, None)))
            )
        for a, b in zip(runs[0].steps, runs[1].steps, strict=True):
            assert b.losses == pytest.approx(a.losses, abs=2e-6)

    def test_a_loss_made_elsewhere_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        class Own(ZOTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                logits = model(**inputs).logits
                return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

        with pytest.raises(ValueError, match=r"0 calls.*PerLayer"):
            trainer_of(tmp_path, "paired", cls=Own).train()
        train(trainer_of(tmp_path, "per_layer", cls=Own))

    def test_a_term_added_to_the_loss_is_refused(self, tmp_path: Path) -> None:
        class More(ZOTrainer):
            def compute_loss(self, *args, **kwargs):
                return super().compute_loss(*args, **kwargs) + 0.5

        with pytest.raises(ValueError, match=r"added in between.*PerLayer"):
            trainer_of(tmp_path, "paired", cls=More).train()
