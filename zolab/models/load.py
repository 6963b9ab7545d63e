"""Models and tokenizers, through transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zolab import assets
from zolab.errors import UserError, first_line
from zolab.models.keys import look_over_keys

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forwards, with its tokenizer.

    Attributes:
        model: in eval mode, on its device, in the dtype asked for.
        tokenizer: as transformers gives it.
        max_length: longest input in tokens.
    """

    model: nn.Module
    tokenizer: Any
    max_length: int


def load_model(config: dict[str, Any], seed: int) -> LoadedModel:
    """The model of a cell.

    Args:
        config: the `model` section of a cell's config.
        seed: run seed; decides the weights of `init=random`.

    Raises:
        UserError: the folder is missing, has no weights, or the hub cannot be reached; a key of
            `model.config` that the model's config does not have, or a value it does not take.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = model_source(config["path"], config["init"])
    dtype = DTYPES[config["dtype"]]
    options: dict[str, Any] = {}
    if config.get("attn_implementation"):
        options["attn_implementation"] = config["attn_implementation"]
    with _told_in_one_line(config):
        shape = model_shape(source, config)
        if config["init"] == "random":
            torch.manual_seed(seed)
            model, told = AutoModelForCausalLM.from_config(shape, dtype=dtype, **options), {}
        else:
            model, told = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                revision=config.get("revision"),
                output_loading_info=True,
                **config["config"],
                **options,
            )
    _refuse_gaps(config["path"], told)
    tokenizer = load_tokenizer(source, config)
    model.eval().to(pick_device(config["device"]))
    return LoadedModel(model, tokenizer, _max_length(model.config))


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


def model_shape(source: str, config: dict[str, Any]) -> Any:
    """The transformers config of a folder or hub model, with the keys of `model.config` replaced.

    Args:
        source: folder or hub name.
        config: the `model` section of a cell's config.

    Raises:
        UserError: the model's config has no such key.
    """
    from transformers import AutoConfig, PreTrainedConfig

    values, revision = config["config"], config.get("revision")
    if values:  # planning looked already, unless the model was not there yet
        look_over_keys(values, PreTrainedConfig.get_config_dict(source, revision=revision)[0])
    return AutoConfig.from_pretrained(source, revision=revision, **values)


@contextlib.contextmanager
def _told_in_one_line(config: dict[str, Any]) -> Iterator[None]:
    """What transformers says about a config or weights it cannot use, as a UserError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, StrictDataclassError) as error:
        what = "model.config" if config["config"] else f"model.path = {config['path']!r}"
        said = first_line(error)
        if isinstance(error, StrictDataclassError):  # the field in one line, its fault in the next
            said = " ".join(str(error).split())
        raise UserError(f"{what}: {said}") from error


def load_tokenizer(source: str, config: dict[str, Any]) -> Any:
    """The tokenizer beside a model; UserError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=config.get("revision"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path = {config['path']!r}: no tokenizer: {first_line(error)}"
        ) from error


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device = {name!r}: no CUDA device here; use auto or cpu")
    return torch.device(name)


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
            return value
    return 2048
