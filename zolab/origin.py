"""The model that a run starts from: its files, and `init.safetensors` for what they do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from zolab.checkpoint import save_tensors, unique_parameters
from zolab.errors import UserError
from zolab.models.load import LoadedModel
from zolab.offloading import Work
from zolab.optim.parameters import is_adapter


def load_origin(folder: Path, cell: dict[str, Any], work: Work) -> LoadedModel:
    """The model at step 0, tuning mode applied; weights that stream are mapped, not read.

    The first attempt writes `init.safetensors`; later ones and replays read it, so that weights
    drawn at random or taken from activations are the same bits on any machine.

    Raises:
        UserError: the model cannot be loaded, or `init.safetensors` of a run that has begun is
            gone.
    """
    loaded = work.load()
    drawn = _drawn(loaded, cell["model"]["init"] == "random")
    if not drawn:
        return loaded
    path = folder / "init.safetensors"
    if path.exists():
        work.take_weights(loaded.model, path, frozenset(drawn))
    elif (folder / "header.json").exists():
        raise UserError(f"{path}: gone, and with it the weights this run began with")
    else:
        save_tensors(path, drawn, {"step": 0})
    return loaded


def _drawn(loaded: LoadedModel, whole: bool) -> dict[str, Tensor]:
    """The weights that no file of the base holds."""
    named = unique_parameters(loaded.model)
    return {name: param for name, param in named.items() if whole or is_adapter(name)}


def trainable_share(loaded: LoadedModel) -> dict[str, Any]:
    """What trains, for the run record: mode, numbers of weights and their quotient."""
    named = unique_parameters(loaded.model).values()
    trained = sum(param.numel() for param in named if param.requires_grad)
    total = sum(param.numel() for param in named)
    return {
        "tuning": loaded.tuning.kind,
        "num_parameters": total,
        "num_trained": trained,
        "trained_share": trained / total,
    }
