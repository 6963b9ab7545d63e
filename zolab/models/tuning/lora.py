"""LoRA: low-rank terms beside some linear layers, made by peft."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zolab.models.tuning.base import (
    TASK_TYPES,
    Tuning,
    find_targets,
    freeze_base,
    matching_modules,
    write_adapter,
)
from zolab.optim.parameters import canonical_name, is_adapter

#: Query and value projections by the names that models give them; where one matrix makes query,
#: key and value together, that one.
QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
)


class Lora(Tuning):
    """y = W x + (alpha / r) B A x with A and B trained, A uniform and B zero at the start.

    Source: LoRA (arXiv 2106.09685), eq. 3; the layers, r = 8 and alpha = 16 of MeZO (arXiv
    2305.17333, appendix E). The layers are peft's, put into the model without a wrapper around it,
    so that all other names stay; no dropout, since both losses of a probe must be of one function.

    Args:
        r: rank.
        alpha: scale times r.
        targets: names of the layers; None for query and value projections.
    """

    kind = "lora"
    adapter_format = "peft"

    def __init__(self, r: int = 8, alpha: float = 16.0, targets: list[str] | None = None) -> None:
        self.r, self.alpha, self.targets = r, alpha, targets

    def apply(self, model: nn.Module, num_words: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        targets = self.targets or find_targets(model, QUERY_VALUE, "query and value projections")
        names = matching_modules(model, targets)
        self._config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=names,
            # GPT-2 keeps its matrices the other way round
            fan_in_fan_out=any(type(model.get_submodule(n)).__name__ == "Conv1D" for n in names),
            lora_dropout=0.0,
            bias="none",
        )
        inject_adapter_in_model(self._config, model)
        freeze_base(model)

    def save_model(self, model: nn.Module, out: Path) -> None:
        """Write the model with the terms added to its matrices."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
        for name, layer in layers:
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        super().save_model(model, out)

    def save_adapter(self, model: nn.Module, out: Path, base: str, kind: str) -> None:
        tensors = {}
        for raw, param in model.named_parameters():
            name = canonical_name(raw)
            if is_adapter(name):
                tensors[f"base_model.model.{name.replace('.default.', '.')}"] = param
        config = {**self._config.to_dict(), "task_type": TASK_TYPES[kind], "inference_mode": True}
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = base
        write_adapter(out, {k: getattr(v, "value", v) for k, v in config.items()}, tensors)
