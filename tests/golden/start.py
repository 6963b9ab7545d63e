"""The start of a trace: a model of transformers with weights from the closed formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.trace import NotUnderstood, Trace

_ATTENTION = "golden_prefix"


def build(trace: Trace) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The model in eval mode, and its parameters and those of unused heads by name."""
    model = _base_model(trace)
    shapes = dict(trace.noise)
    for name in trace.checksums:
        if name.endswith(".lora_A"):
            _add_lora(model, name.removesuffix(".lora_A"), shapes, _alpha(trace))
        elif name.endswith((".prefix_keys", ".prefix_values")):
            if trace.arch == "llama":
                raise NotUnderstood("prefix tuning of llama")
            _add_parameter(model, name, shapes)
    model.to(trace.dtype).eval()
    named = dict(model.named_parameters())
    for name, shape in shapes.items():
        if name not in named:
            _check_unused(name)
            named[name] = nn.Parameter(torch.zeros(shape, dtype=trace.dtype))
    with torch.no_grad():
        for name, param in named.items():
            param.copy_(formula(name, param.shape))
    return model, named


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """formula-v1: float64, exact in float32."""
    k = sum((i + 1) * b for i, b in enumerate(name.encode())) % 65521
    numel = torch.Size(shape).numel()
    j = torch.arange(numel, dtype=torch.int64)
    c = ((31 * j * j + 17 * j + 101 * k + 7) % 65521 - 32760).double()
    if len(shape) > 1:
        return (c * 2.0**-17).view(shape)
    parts = name.split(".")
    norm = parts[-1] == "weight" and len(parts) > 1 and "norm" in parts[-2].lower()
    return (c * 2.0**-19 + (1.0 if norm else 0.0)).view(shape)


def summary(tensor: Tensor) -> list[float]:
    """[sum, L2 norm, 8 entries], in float64, as the files hold it."""
    flat = tensor.detach().double().view(-1)
    index = [i * (flat.numel() - 1) // 7 for i in range(8)]
    return [float(flat.sum()), float(flat.norm()), *flat[index].tolist()]


def _check_unused(name: str) -> None:
    """Only the heads that a program carries along may be noised without being part of a loss."""
    if not name.startswith(("roberta.pooler.", "classifier.")):
        raise NotUnderstood(f"parameter {name} is not part of the model")


# -- models -------------------------------------------------------------------------------------


def _base_model(trace: Trace) -> nn.Module:
    import transformers

    config_class, model_class = {
        ("opt", "lm"): ("OPTConfig", "OPTForCausalLM"),
        ("opt", "seqcls"): ("OPTConfig", "OPTForSequenceClassification"),
        ("llama", "lm"): ("LlamaConfig", "LlamaForCausalLM"),
        ("roberta-prompt", "lm"): ("RobertaConfig", "RobertaForMaskedLM"),
    }[trace.arch, trace.head]
    settings: dict[str, Any] = dict(trace.config)
    if trace.arch == "roberta-prompt":
        # That program's output layer is a matrix of its own, listed as one.
        listed = {*trace.checksums, *trace.order}
        settings["tie_word_embeddings"] = "lm_head.decoder.weight" not in listed
    config = getattr(transformers, config_class)(**settings)
    config._attn_implementation = _attention(trace)
    model = getattr(transformers, model_class)(config)
    if trace.arch == "roberta-prompt":
        model.lm_head.decoder.bias = model.lm_head.bias
    if trace.arch == "llama":
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = _rms_norm(module)
    return model


def _attention(trace: Trace) -> str:
    """The kernel whose arithmetic is that of the recorded program."""
    if trace.tune == "prefix":
        _register_attention()
        return _ATTENTION
    # transformers 4.28 has the softmax of llama in float32 whatever the weights are, that of opt
    # and roberta in the dtype of the weights; today's eager attention has all in float32.
    if trace.arch == "llama" or (trace.dtype == torch.float32 and trace.program != "zo2"):
        return "eager"
    return "sdpa"


def _rms_norm(module: nn.Module):
    """RMSNorm of transformers 4.28: only the variance is taken in float32."""

    def forward(x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return module.weight * (x * torch.rsqrt(variance + module.variance_epsilon))

    return forward


# -- adapters -----------------------------------------------------------------------------------


def _add_parameter(model: nn.Module, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Register a parameter under a dotted name."""
    path, _, last = name.rpartition(".")
    if name not in shapes:
        raise NotUnderstood(f"parameter {name} has no shape")
    module = model.get_submodule(path)
    module.register_parameter(last, nn.Parameter(torch.zeros(shapes[name])))


def _alpha(trace: Trace) -> float:
    """LoRA's alpha stands only in the note; 16 is the default of the programs."""
    _, found, rest = trace.note.partition("alpha=")
    return float(rest.split()[0].rstrip(";,")) if found else 16.0


def _add_lora(
    model: nn.Module, path: str, shapes: dict[str, tuple[int, ...]], alpha: float
) -> None:
    """y = W x + b + alpha / r · B A x, with A (r, in) and B (out, r)."""
    linear = model.get_submodule(path)
    for factor in ("lora_A", "lora_B"):
        _add_parameter(model, f"{path}.{factor}", shapes)
    scaling = alpha / shapes[f"{path}.lora_A"][0]

    def forward(x: Tensor) -> Tensor:
        update = x @ linear.lora_A.T @ linear.lora_B.T
        return F.linear(x, linear.weight, linear.bias) + update * scaling

    linear.forward = forward


def _register_attention() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_ATTENTION, _prefix_attention)
    AttentionMaskInterface.register(_ATTENTION, eager_mask)


def _prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention to learned keys and values in front of the others, seen from every position."""
    keys, values = (
        prefix.view(prefix.shape[0], key.shape[1], -1)
        .transpose(0, 1)
        .expand(key.shape[0], -1, -1, -1)
        for prefix in (module.prefix_keys, module.prefix_values)
    )
    if attention_mask is None:
        attention_mask = query.new_zeros(key.shape[0], 1, query.shape[2], key.shape[2])
    mask = F.pad(attention_mask, (keys.shape[2], 0))
    out = F.scaled_dot_product_attention(
        query, torch.cat((keys, key), 2), torch.cat((values, value), 2), mask, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None
