"""ZOTrainer: Trainer's loop around our optimizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tests.optim.test_standalone import run_block
from tests.optim.tiny import bits, same_bits
from zolab.integrations.hf import ZOTrainer, _check_arguments
from zolab.optim import (
    ForwardGradient,
    InPlace,
    MeZO,
    MeZOMomentum,
    Paired,
    PerLayer,
    SparseMeZO,
    ZeroOrder,
    ZOBlockWise,
)

PLACEMENTS = {"in_place": InPlace, "paired": Paired, "per_layer": PerLayer}


def tiny_opt(dropout: float = 0.0) -> nn.Module:
    config = OPTConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, dropout=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    return OPTForCausalLM(config)


def rows(count: int = 24) -> list[dict]:
    """Rows of 8 tokens that score 1 to 7 of them, so that micro-batches differ in items."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for i in range(count):
        ids = torch.randint(4, 32, (8,), generator=generator).tolist()
        scored = 1 + (5 * i) % 7
        out.append({"input_ids": ids, "labels": [-100] * (8 - scored) + ids[8 - scored :]})
    return out


def trainer_of(
    output: Path, placement: str = "in_place", method=MeZO, model: nn.Module | None = None,
    cls: type[ZOTrainer] = ZOTrainer, seed: int = 0, eps: float = 1e-3,
    options: dict | None = None, **args,
) -> ZOTrainer:  # fmt: skip
    given = {
        "max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [],
        "train_sampling_strategy": "sequential", "logging_steps": 1, "disable_tqdm": True,
        "save_strategy": "no",
    }  # fmt: skip
    model = model or tiny_opt()
    extra = {"placement": PLACEMENTS[placement](), "eps": eps}
    if method is ForwardGradient:
        extra = {}
    optimizer = method(model.named_parameters(), lr=1e-2, seed=seed, model=model, **extra)
    return cls(
        model, TrainingArguments(str(output), **(given | args)), train_dataset=rows(),
        optimizers=(optimizer, None), **(options or {}),
    )  # fmt: skip


class Record(TrainerCallback):
    """The optimizer's record after every step, and the weights as a callback finds them."""

    def __init__(self, trainer: ZOTrainer) -> None:
        self.trainer = trainer
        self.steps, self.weights = [], []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append(self.trainer.zero_order.last)
        self.weights.append(bits(model))


def train(trainer: ZOTrainer, **kwargs) -> Record:
    record = Record(trainer)
    trainer.train(**kwargs)
    return record


class TestAccumulation:
    @pytest.mark.parametrize("placement", PLACEMENTS)
    def test_micro_batches_make_one_estimate(self, tmp_path: Path, placement: str) -> None:
        """2 x 2 rows and 4 x 1 row give what 1 x 4 rows give, though items differ by row."""
        runs = []
        for size in (4, 2, 1):
            trainer = trainer_of(
                tmp_path, placement, per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
            )  # fmt: skip
            runs.append(train(trainer))
            assert trainer.zero_order.num_steps == trainer.state.global_step == 4
        for other in runs[1:]:
            for a, b in zip(runs[0].steps, other.steps, strict=True):
                # Rounding of the first step grows with the steps that follow.
                assert b.losses == pytest.approx(a.losses, abs=2e-6 if a.step == 1 else 3e-5)
                assert b.num_forwards == 2
                assert b.projected_grad == pytest.approx(a.projected_grad, abs=1e-2)

    @pytest.mark.parametrize("takes_items", [True, False])
    def test_the_loss_is_the_one_trainer_accumulates(
        self, tmp_path: Path, takes_items: bool
    ) -> None:
        """(L+ - L-) / 2 eps is z times the gradient that Trainer itself accumulates."""

        class OwnForCausalLM(OPTForCausalLM):
            accepts_loss_kwargs = takes_items

        class Stop(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
                self.gradient = {n: p.grad.clone() for n, p in model.named_parameters()}

        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(OwnForCausalLM(tiny_opt().config))
            models[-1].load_state_dict(models[0].state_dict())
        ours = trainer_of(tmp_path, "per_layer", model=models[0], max_steps=1, eps=2e-4, **settings)
        record = train(ours)
        stop = Stop()
        args = TrainingArguments(
            str(tmp_path), max_steps=1, use_cpu=True, report_to=[], max_grad_norm=0.0,
            train_sampling_strategy="sequential", disable_tqdm=True, save_strategy="no", **settings,
        )  # fmt: skip
        theirs = Trainer(models[1], args, train_dataset=rows(), callbacks=[stop])
        theirs.train()
        slope, optimizer = 0.0, ours.zero_order
        for info in optimizer.infos:
            seed = optimizer.seed_of(1, 0)
            z = optimizer.direction.z(info.pid, seed, 0, info.numel, torch.device("cpu"))
            slope += float(z.double() @ stop.gradient[info.name].double().flatten())
        assert record.steps[0].projected_grad == pytest.approx(slope, abs=1e-2)
        assert record.steps[0].loss == pytest.approx(
            theirs.state.log_history[-1]["train_loss"], abs=1e-4
        )

    def test_a_short_last_step_of_an_epoch(self, tmp_path: Path) -> None:
        """24 rows in batches of 5 are 5 batches: steps of 2, 2 and 1 of them."""
        seen = []

        class Watched(ZOTrainer):
            def losses(self, model, batch, copies):
                seen.append((len(batch.inputs["input_ids"]), batch.num_batches))
                return super().losses(model, batch, copies)

        trainer = trainer_of(
            tmp_path, cls=Watched, per_device_train_batch_size=5, gradient_accumulation_steps=2,
            max_steps=3,
        )  # fmt: skip
        train(trainer)
        step = [(5, 2), (5, 2)]
        assert seen == step * 2 + step * 2 + [(4, 1)] * 2


class TestTrainer:
    @pytest.mark.parametrize("method", [MeZOMomentum, ZOBlockWise, ForwardGradient, SparseMeZO])
    def test_other_methods(self, tmp_path: Path, method) -> None:
        trainer = trainer_of(tmp_path, "in_place", method, gradient_accumulation_steps=2)
        before = bits(trainer.model)
        train(trainer)
        assert trainer.zero_order.num_steps == 4
        assert not same_bits(before, bits(trainer.model))

    def test_placements_agree_and_every_callback_finds_clean_weights(self, tmp_path: Path) -> None:
        runs = {name: train(trainer_of(tmp_path, name)) for name in PLACEMENTS}
        for name in ("paired", "per_layer"):
            for a, b in zip(runs["in_place"].weights, runs[name].weights, strict=True):
                for x, y in zip(a, b, strict=True):
                    x, y = x.view(torch.float32), y.view(torch.float32)
                    torch.testing.assert_close(x, y, rtol=0, atol=2e-4)

    @pytest.mark.parametrize("placement", PLACEMENTS)
    def test_lora(self, tmp_path: Path, placement: str) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(tiny_opt(), config)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        trainer = trainer_of(
            tmp_path, placement, model=model, save_strategy="steps", save_steps=2,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        record = train(trainer)
        assert len({step.losses for step in record.steps}) == 4
        assert not same_bits(record.weights[0], record.weights[-1])
        for name, param in model.named_parameters():
            assert param.requires_grad or torch.equal(param, frozen[name])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert same_bits(bits(model), record.weights[3])

    def test_an_optimizer_that_trainer_makes(self, tmp_path: Path) -> None:
        """Trainer's own protocol: a class gets parameter groups, a factory gives a builder."""

        def build(model: nn.Module, **options) -> ZeroOrder:
            return MeZO(model.named_parameters(), model=model, placement=Paired(), **options)

        args = TrainingArguments(
            str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no",
            weight_decay=0.1, disable_tqdm=True,
        )  # fmt: skip
        for cls, decay in ((ZeroOrder, (0.1, 0.0)), (lambda: build, (0.0,))):
            trainer = ZOTrainer(
                tiny_opt(), args, train_dataset=rows(),
                optimizer_cls_and_kwargs=(cls, {"lr": 1e-2, "seed": 3}),
            )  # fmt: skip
            trainer.train()
            assert trainer.zero_order.num_steps == 2
            assert trainer.zero_order.values("weight_decay") == decay

    def test_it_is_the_plain_loop(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, lr_scheduler_type="constant")
        record = train(trainer)
        model, data = tiny_opt().eval(), rows()
        model.config.use_cache = False
        optimizer = MeZO(model.named_parameters(), lr=1e-2, seed=0, model=model)
        for step in range(4):
            part = data[4 * step : 4 * step + 4]
            ids = torch.tensor([row["input_ids"] for row in part])
            labels = torch.tensor([row["labels"] for row in part])
            items = labels[:, 1:].ne(-100).sum()
            optimizer.step(
                lambda x=ids, y=labels, n=items: model(x, labels=y, num_items_in_batch=n).loss
            )
            optimizer.flush()
            assert record.steps[step].losses == optimizer.last.losses
            assert same_bits(record.weights[step], bits(model))

    def test_no_dropout_in_a_probe(self, tmp_path: Path) -> None:
        """With dropout the two losses at eps -> 0 would differ by far more than eps."""
        trainer = trainer_of(tmp_path, model=tiny_opt(dropout=0.5))
        for step in train(trainer).steps:
            assert abs(step.losses[0] - step.losses[1]) < 0.05

    def test_scheduler_logs_and_evaluation(self, tmp_path: Path) -> None:
        trainer = trainer_of(
            tmp_path, lr_scheduler_type="linear", eval_strategy="steps", eval_steps=2,
            options={"eval_dataset": rows(8)},
        )  # fmt: skip
        record = train(trainer)
        assert [step.lr for step in record.steps] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in logs] == [1, 2, 3, 4]
        for entry, step in zip(logs, record.steps, strict=True):
            assert entry["loss"] == pytest.approx(step.loss, abs=1e-4)
            assert entry["projected_grad"] == step.projected_grad
            assert entry["num_forwards"] == 2
            assert "grad_norm" not in entry
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert [entry["step"] for entry in evaluations] == [2, 4]
        assert trainer.evaluate()["eval_loss"] == evaluations[-1]["eval_loss"]

    @pytest.mark.parametrize(
        ("method", "placement"),
        [(MeZO, "in_place"), (MeZOMomentum, "in_place"), (SparseMeZO, "paired")],
    )
    def test_resume_goes_on_bit_for_bit(self, tmp_path: Path, method, placement: str) -> None:
        settings = {
            "method": method, "placement": placement, "max_steps": 7, "save_strategy": "steps",
            "save_steps": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
        }  # fmt: skip
        straight = train(trainer_of(tmp_path, **settings))
        resumed = trainer_of(tmp_path, seed=99, **settings)
        record = train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert (resumed.zero_order.seed, resumed.zero_order.num_steps) == (0, 7)
        assert [step.step for step in record.steps] == [4, 5, 6, 7]
        assert record.steps == straight.steps[3:]
        assert same_bits(record.weights[-1], straight.weights[-1])

    def test_what_is_saved_is_clean(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
        record = train(trainer)
        saved = OPTForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
        assert same_bits(bits(saved), record.weights[1])
        state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
        assert state["global_step"] == 2
        trainer.save_model(tmp_path / "end")
        end = OPTForCausalLM.from_pretrained(tmp_path / "end")
        assert same_bits(bits(end), record.weights[-1])

    def test_the_best_model_is_loaded_as_it_was(self, tmp_path: Path) -> None:
        trainer = trainer_of(
            tmp_path, max_steps=6, save_strategy="steps", save_steps=2, eval_strategy="steps",
            eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
            greater_is_better=True,  # surely not the last one
            options={"eval_dataset": rows(8)},
        )  # fmt: skip
        record = train(trainer)
        best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
        trainer.zero_order.flush()
        assert same_bits(bits(trainer.model), record.weights[best - 1])

    def test_a_loss_that_is_not_finite_changes_no_bit(self, tmp_path: Path) -> None:
        class Broken(ZOTrainer):
            def compute_loss(self, model, inputs, *args, **kwargs):
                loss = super().compute_loss(model, inputs, *args, **kwargs)
                return loss * torch.nan if self.state.global_step == 1 else loss

        trainer = trainer_of(tmp_path, "per_layer", cls=Broken)
        record = train(trainer)
        assert [step.coefficients is None for step in record.steps] == [False, True, False, False]
        assert same_bits(record.weights[0], record.weights[1])
        assert "projected_grad" not in trainer.state.log_history[1]

    def test_bfloat16_autocast(self, tmp_path: Path) -> None:
        runs = {name: train(trainer_of(tmp_path, name, bf16=True)).steps for name in PLACEMENTS}
        plain = train(trainer_of(tmp_path)).steps
        for name in PLACEMENTS:
            assert runs[name][0].losses != plain[0].losses
            assert runs[name][0].losses == pytest.approx(plain[0].losses, abs=0.01)
            assert runs[name][0].losses == pytest.approx(runs["per_layer"][0].losses, abs=2e-4)

    def test_the_example_of_the_page(self, tmp_path: Path) -> None:
        space, printed = run_block("transformers' Trainer", output=str(tmp_path))
        assert "StepRecord(step=20" in printed
        losses = [entry["loss"] for entry in space["trainer"].state.log_history if "loss" in entry]
        assert not losses or losses[-1] < 5.0


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("neftune_noise_alpha", 5.0, "eval mode"),
            ("auto_find_batch_size", True, "half done"),
            ("max_grad_norm", 0.5, "no gradient to clip"),
        ],
    )
    def test_arguments(self, tmp_path: Path, name: str, value: object, reason: str) -> None:
        with pytest.raises(ValueError, match=rf"{name} = {value}: .*{reason}"):
            trainer_of(tmp_path, **{name: value})

    def test_a_gradient_scaler(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"fp16 = True: .*gradient scaler.*bf16"):
            trainer_of(tmp_path, fp16=True)

    def test_several_devices(self, tmp_path: Path) -> None:
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
        args._n_gpu = 2  # as on a machine with two
        with pytest.raises(ValueError, match=r"parallel_mode = not_distributed: .*one device"):
            _check_arguments(args)

    def test_compiled_models_with_placements_that_wrap_modules(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"torch_compile = True: .*paired.*InPlace"):
            trainer_of(tmp_path, "paired", torch_compile=True)

    def test_another_optimizer_or_none(self, tmp_path: Path) -> None:
        model = tiny_opt()
        args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
        adam = torch.optim.AdamW(model.parameters())
        with pytest.raises(ValueError, match="AdamW needs gradients"):
            ZOTrainer(model, args, train_dataset=rows(), optimizers=(adam, None))
        with pytest.raises(ValueError, match="needs a zeroth-order optimizer"):
            ZOTrainer(model, args, train_dataset=rows()).train()
