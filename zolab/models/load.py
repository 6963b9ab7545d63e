"""Models and tokenizers, through transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab import assets
from zolab.config.contents import uses_shape
from zolab.config.kinds import look_over_kind
from zolab.errors import UserError, first_line
from zolab.models.shapes import auto_class, model_shape
from zolab.models.tokenizers import load_tokenizer, settle_tokenizer
from zolab.models.tuning import Full, Tuning, make_tuning
from zolab.optim import linear
from zolab.optim.parameters import canonical_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forwards, with its tokenizer.

    Attributes:
        model: in eval mode, on its device, in the dtype asked for, with what the tuning mode adds.
        tokenizer: of transformers, with begin token and padding settled.
        max_length: longest input in tokens.
        kind: "causal" or "masked".
        tuning: which weights train.
    """

    model: nn.Module
    tokenizer: Any
    max_length: int
    kind: str = "causal"
    tuning: Tuning = field(default_factory=Full)

    @property
    def trained(self) -> frozenset[str] | None:
        """Canonical names of the weights that may move; None: all of them."""
        if not self.tuning.frozen_base:
            return None
        named = self.model.named_parameters()
        return frozenset(canonical_name(name) for name, p in named if p.requires_grad)


def load_model(config: dict[str, Any], seed: int) -> LoadedModel:
    """The model of a cell, with its tuning mode applied.

    Args:
        config: the `model` section of a cell's config.
        seed: run seed; decides the weights of `init=random` and of what the tuning mode adds.

    Raises:
        UserError: the folder is missing, has no weights, or the hub cannot be reached; a key of
            `model.config` that the model's config does not have, or a value it does not take; a
            dtype that the device lacks; a tuning mode that the model has no place for.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = pick_device(config["device"])
    source = model_source(config["path"], config["init"])
    dtype = DTYPES[config["dtype"]]
    check_dtype(config["dtype"], device)
    kind = config.get("kind", "causal")
    options: dict[str, Any] = {}
    if config.get("attn_implementation"):
        options["attn_implementation"] = config["attn_implementation"]
    with _told_in_one_line(config):
        shape = model_shape(source, config)
        look_over_kind({**config, "kind": kind}, shape.to_dict())
        if config["init"] == "random":
            torch.manual_seed(seed)
            model, told = auto_class(kind).from_config(shape, dtype=dtype, **options), {}
        else:
            if config.get("device_map"):
                options["device_map"] = config["device_map"]
            model, told = auto_class(kind).from_pretrained(
                source,
                dtype=dtype,
                revision=config.get("revision"),
                output_loading_info=True,
                **config["config"],
                **options,
            )
    _refuse_gaps(config["path"], told)
    if uses_shape(config):
        source = str(assets.model_dir(assets.TOKENIZER))
    tokenizer = load_tokenizer(source, config["path"], config.get("revision"))
    if kind == "masked" and uses_shape(config):
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    num_rows = model.get_input_embeddings().weight.shape[0]
    settle_tokenizer(tokenizer, shape.model_type, kind, num_rows, config.get("bos", "auto"))
    model.eval()
    if not config.get("device_map"):
        model.to(device)
    loaded = LoadedModel(model, tokenizer, _max_length(model.config), kind)
    loaded = tune(loaded, config.get("tuning") or {"kind": "full"}, seed)
    if by_onednn(config.get("linear", "auto")):
        linear.use_onednn(loaded.model)
    return loaded


def by_onednn(name: str) -> bool:
    """Whether `model.linear` means oneDNN here; UserError where it is asked for and missing."""
    if name == "onednn" and not linear.is_there():
        raise UserError("model.linear = 'onednn': this torch has none; expected auto or torch")
    return name == "onednn" or (name == "auto" and linear.pays())


def tune(loaded: LoadedModel, node: dict[str, Any], seed: int) -> LoadedModel:
    """Freeze, and add, what a tuning mode asks for.

    Args:
        loaded: changed in place.
        node: `model.tuning` of a checked cell.
        seed: decides what is added; the caller's random state stays as it was.

    Raises:
        UserError: the model has no place for it.
    """
    tuning = make_tuning(node)
    devices = [0] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        tuning.apply(loaded.model, len(loaded.tokenizer))
    room = loaded.max_length - tuning.num_positions
    if room < 2:
        raise UserError(
            f"model.tuning.num_tokens = {tuning.num_positions}: the model takes "
            f"{loaded.max_length} tokens, which leaves none for the text"
        )
    return replace(loaded, tuning=tuning, max_length=room)


def model_source(path: str, init: str) -> str:
    """What transformers should load from: a folder, or a hub name."""
    folder = assets.locate_model(path)
    if folder is None:
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"model.path = {path!r}: no such folder")
        return path
    has_config = (folder / "config.json").is_file()
    if not has_config:
        raise UserError(f"model.path = {path!r}: the folder has no config.json")
    if init != "random" and not any(any(folder.glob(p)) for p in _WEIGHT_PATTERNS):
        raise UserError(
            f"model.path = {path!r}: the folder has no weights (expected *.safetensors); "
            "model.init=random draws them at random"
        )
    return str(folder)


@contextlib.contextmanager
def _told_in_one_line(config: dict[str, Any]) -> Iterator[None]:
    """What transformers says about a config or weights it cannot use, as a UserError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, ImportError, StrictDataclassError) as error:
        what = "model.config" if config["config"] else f"model.path = {config['path']!r}"
        said = first_line(error)
        if config.get("device_map") and "device_map" in said:
            what = f"model.device_map = {config['device_map']!r}"
        elif config.get("attn_implementation") and "atten" in said.lower():
            what = f"model.attn_implementation = {config['attn_implementation']!r}"
        if isinstance(error, StrictDataclassError):  # the field in one line, its fault in the next
            said = " ".join(str(error).split())
        raise UserError(f"{what}: {said}") from error


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device = {name!r}: no CUDA device here; use auto or cpu")
    return torch.device(name)


def check_dtype(name: str, device: torch.device) -> None:
    """Refuse a type that a device cannot compute in; UserError naming both."""
    try:
        x = torch.ones(2, 4, dtype=DTYPES[name], device=device)
        probe = torch.nn.functional.layer_norm(torch.softmax(x @ x.T @ x, -1), (4,))
        lacking = not bool(torch.isfinite(probe).all())
        if device.type == "cuda" and name == "bfloat16":
            lacking |= not torch.cuda.is_bf16_supported(including_emulation=False)
    except (RuntimeError, TypeError):
        lacking = True
    if lacking:
        others = ", ".join(other for other in DTYPES if other != name)
        raise UserError(
            f"model.dtype = {name!r}: {device} does not compute in it; expected one of {others}"
        )


def save_model(model: nn.Module, tokenizer: Any, out: Path) -> None:
    """Write a folder that `from_pretrained` loads."""
    model.save_pretrained(out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    json.loads((out / "config.json").read_text())  # a half-written folder must not look whole


def _refuse_gaps(path: str, told: dict[str, Any]) -> None:
    """transformers draws weights that a folder lacks at random: no run may begin from those."""
    missing = sorted(told.get("missing_keys") or ())
    if missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"model.path = {path!r}: the weights lack {missing[0]}{rest}")
    mismatched = [str(entry[0]) for entry in told.get("mismatched_keys") or ()]
    if mismatched:
        raise UserError(f"model.path = {path!r}: {mismatched[0]} has another shape than the model")


def _max_length(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value - _first_position(config)
    return 2048


def _first_position(config: Any) -> int:
    """A RoBERTa counts positions from behind its padding index: its table has more than it uses."""
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return int(config.pad_token_id or 0) + 1
    return 0
