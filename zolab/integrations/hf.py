"""transformers' Trainer with a zeroth-order optimizer.

from zolab.integrations.hf import ZOTrainer
optimizer = MeZO(model.named_parameters(), lr=1e-6, model=model)
ZOTrainer(model, args, train_dataset=data, optimizers=(optimizer, None)).train()

The loop, the data, the scheduler, logging, evaluation and checkpoints stay Trainer's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import ParallelMode

from zolab.integrations.copies import LossPerCopy, repeat_rows
from zolab.optim import ZeroOrder

#: Trainer's default; there is no gradient to clip, so any other value is a wish we cannot grant.
DEFAULT_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class MicroBatch:
    """What Trainer hands to one `training_step`.

    Attributes:
        inputs: the model's arguments, on its device.
        num_items: items in all micro-batches of the optimizer step (Trainer's count); None where
            Trainer takes plain means.
        num_batches: micro-batches of the optimizer step.
    """

    inputs: dict[str, Any]
    num_items: Tensor | int | None
    num_batches: int


class ZOTrainer(Trainer):
    """`Trainer` whose optimizer is a `ZeroOrder`, with any placement.

    Give the optimizer as `optimizers=(optimizer, scheduler or None)`; lr, eps and weight decay are
    its own, as with every optimizer handed to Trainer. With `model_init` give Trainer a builder
    instead: `optimizer_cls_and_kwargs=(lambda: build, options)`, `build(model, **options)`.

    The losses of a step are exactly those Trainer would back-propagate, in eval mode (no dropout)
    and without a graph.

    With `gradient_accumulation_steps` the micro-batches are kept until the last one; then each
    perturbed point is evaluated on all of them, their losses are added with Trainer's own weights
    (per item where the model takes `num_items_in_batch`, else 1 / micro-batches), and one
    coefficient makes one update. That holds the micro-batches of a step in memory, as Trainer's
    prefetch does, and never the activations of more than one.

    Weights are clean at every callback but `on_pre_optimizer_step`, hence when evaluating and
    saving. A checkpoint's optimizer state has seed and step, so a resumed run goes on bit for bit.
    Training logs have `projected_grad` and `num_forwards` in place of `grad_norm`.

    `Paired` sees the batch twice in one forward, so the loss must be made by the model's
    `loss_function`, by `compute_loss_func` or by label smoothing, which are then called on each
    half; other losses are refused with the way out.

    Raises:
        ValueError: an argument that needs gradients or several processes, or no `ZeroOrder`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._micro_batches: list[MicroBatch] = []
        _check_arguments(self.args)
        if self.optimizer is not None:
            self._check_optimizer()
        # First, so that every other callback finds clean weights.
        self.callback_handler.callbacks.insert(0, _CleanWeights())

    @property
    def zero_order(self) -> ZeroOrder:
        """The optimizer without accelerate's wrapper; `zero_order.last` is its last step."""
        return _unwrapped(self.optimizer)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As Trainer's, from `optimizers` or `optimizer_cls_and_kwargs` alone: no default."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            raise ValueError(
                "ZOTrainer needs a zeroth-order optimizer: "
                "optimizers=(MeZO(model.named_parameters(), lr=1e-6, model=model), None)"
            )
        optimizer = super().create_optimizer(*args, **kwargs)
        self._check_optimizer()
        self._micro_batches = []
        return optimizer

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Keep a micro-batch; at the last one of a step estimate on all of them.

        Returns:
            The loss of the step, 0 for the micro-batches before the last: Trainer adds them up.
        """
        inputs = dict(self._prepare_inputs(inputs))
        self._micro_batches.append(
            MicroBatch(inputs, num_items_in_batch, self.current_gradient_accumulation_steps)
        )
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        model.eval()  # dropout would be another function at each of the points compared
        loss = self.zero_order.estimate(StepLoss(self, model, batches))
        return torch.tensor(loss, device=self.args.device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's; the norm of gradients that do not exist gives way to what does."""
        if "grad_norm" in logs:
            last = self.zero_order.last
            logs = {key: value for key, value in logs.items() if key != "grad_norm"}
            logs["num_forwards"] = last.num_forwards
            if last.coefficients:  # a skipped step has none
                logs["projected_grad"] = last.projected_grad
        super().log(logs, *args, **kwargs)

    def losses(self, model: nn.Module, batch: MicroBatch, copies: int) -> list[Tensor]:
        """What one micro-batch adds to the loss of its step, for each copy of it: scalars."""
        num_items = batch.num_items
        with self.compute_loss_context_manager():
            if copies == 1:  # a fresh dict: label smoothing takes the labels out of it
                losses = [self.compute_loss(model, {**batch.inputs}, num_items_in_batch=num_items)]
            else:
                inputs, sizes = repeat_rows(batch.inputs, copies, _main_input(model))
                with LossPerCopy(self, model, copies, sizes) as per_copy:
                    loss = self.compute_loss(model, inputs, num_items_in_batch=num_items)
                losses = per_copy.of(loss)
        if not self._is_scaled(num_items):
            losses = [loss / batch.num_batches for loss in losses]
        return losses

    def _is_scaled(self, num_items: Tensor | int | None) -> bool:
        """Whether a micro-batch's loss is already its share of the step's (Trainer's rule)."""
        told = getattr(self, "loss_is_scaled_for_ga", None)
        if told is not None:
            return told
        by_model = self.model_accepts_loss_kwargs and num_items is not None
        return by_model or self.compute_loss_func is not None

    def _check_optimizer(self) -> None:
        optimizer = _unwrapped(self.optimizer)
        if not isinstance(optimizer, ZeroOrder):
            raise ValueError(
                f"optimizers: {type(optimizer).__name__} needs gradients; ZOTrainer takes a "
                "zolab.optim.ZeroOrder, such as MeZO(...)"
            )
        if self.args.torch_compile and optimizer.placement.needs_model:
            raise ValueError(
                f"torch_compile = True: placement {optimizer.placement.name} perturbs modules from "
                "outside, which a compiled graph does not see; use placement=InPlace()"
            )


class StepLoss:
    """The loss of one optimizer step as a closure, in micro-batches.

    Args:
        trainer, model: of the step.
        batches: its micro-batches.
    """

    def __init__(self, trainer: ZOTrainer, model: nn.Module, batches: list[MicroBatch]) -> None:
        self.trainer, self.model, self.batches = trainer, model, batches

    def __call__(self, copies: int = 1) -> list[Tensor]:
        """One float64 scalar per copy; tensors, because a forward gradient reads tangents."""
        each = [self.trainer.losses(self.model, batch, copies) for batch in self.batches]
        return [sum(loss.double() for loss in column) for column in zip(*each, strict=True)]


class _CleanWeights(TrainerCallback):
    """Applies what `InPlace` defers, before anybody looks; changes no trajectory."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _unwrapped(kwargs["optimizer"]).flush()


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer without the wrapper of `accelerator.prepare`."""
    return getattr(optimizer, "optimizer", optimizer)


def _main_input(model: nn.Module) -> str:
    return getattr(model, "main_input_name", "input_ids")


#: Trainer arguments that mean nothing, or something wrong, without gradients: why, and what else.
REFUSED = {
    "fp16": "its gradient scaler needs gradients; use bf16 = True, or load the weights in float16 "
    "and take placement Paired or PerLayer",
    "deepspeed": "it owns the weights",
    "fsdp": "it owns the weights",
    "neftune_noise_alpha": "its noise exists in training mode only; losses are compared in eval "
    "mode",
    "auto_find_batch_size": "a try that fails leaves a step half done",
}


def _check_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that cannot be honoured, with the reason."""
    for name, reason in REFUSED.items():
        if getattr(args, name):
            raise ValueError(f"{name} = {getattr(args, name)}: {reason}")
    if args.max_grad_norm not in (None, 0.0, DEFAULT_MAX_GRAD_NORM):
        raise ValueError(
            f"max_grad_norm = {args.max_grad_norm}: there is no gradient to clip; leave it out"
        )
    if args.parallel_mode != ParallelMode.NOT_PARALLEL:
        raise ValueError(
            f"parallel_mode = {args.parallel_mode.value}: ZOTrainer runs in one process on one "
            "device; show it one with CUDA_VISIBLE_DEVICES"
        )
