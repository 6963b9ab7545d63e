"""Weights on disk: shortcuts for a resume, the best point so far, and their hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zolab.errors import UserError
from zolab.optim.parameters import canonical_name
from zolab.optim.placements import Placement


def unique_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by canonical name, tied ones once, sorted."""
    seen: set[int] = set()
    out = {}
    for name, param in model.named_parameters():
        if id(param) not in seen:
            seen.add(id(param))
            out[canonical_name(name)] = param
    return dict(sorted(out.items()))


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, param in unique_parameters(model).items():
        data = param.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        flat = data.view(-1).view(torch.uint8) if data.dim() else data.view(1).view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Write a safetensors file atomically and durably, `extra` as JSON in its metadata.

    Raises:
        UserError: the disk is full; an older file of that name is untouched.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(plain, temp, metadata={"zolab": json.dumps(extra)})
        with open(temp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    except Exception as error:
        temp.unlink(missing_ok=True)
        if isinstance(error, OSError) or "No space left" in str(error):
            raise UserError(f"{path}: cannot save ({error}); free some space and retry") from error
        raise


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and extra of a file made by `save_tensors`."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("zolab", "{}"))


def copy_into(
    model: nn.Module,
    tensors: dict[str, Tensor],
    names: frozenset[str] | None = None,
    placement: Placement | None = None,
) -> None:
    """Set parameters by canonical name: those of `names`, None for all; these and no others.

    Args:
        model: whose parameters.
        tensors: the weights.
        names: see above.
        placement: what evaluates with them, where they may lie elsewhere than in the parameters.
    """
    parameters = _named(model, names)
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise ValueError(f"weights do not fit the model: {', '.join(odd[:3])}")
    (placement or Placement()).load_weights(parameters, tensors)


def _named(model: nn.Module, names: frozenset[str] | None) -> dict[str, nn.Parameter]:
    found = unique_parameters(model)
    return {k: v for k, v in found.items() if names is None or k in names}


class Checkpoints:
    """`checkpoint/` of a run: the newest weights and the best ones; gone once the run is done.

    Args:
        run_dir: the run.
        names: canonical names of the weights that can move, the only ones kept; None for all.
    """

    def __init__(self, run_dir: Path, names: frozenset[str] | None = None) -> None:
        self.folder = run_dir / "checkpoint"
        self.names = names

    def save(self, model: nn.Module, state: dict[str, Tensor], extra: dict[str, Any]) -> None:
        """Weights and optimizer state after step `extra["step"]`; older ones go."""
        self.folder.mkdir(exist_ok=True)
        tensors = {f"w.{k}": v for k, v in _named(model, self.names).items()}
        tensors |= {f"s.{k}": v for k, v in state.items()}
        path = self.folder / f"step-{extra['step']:09d}.safetensors"
        save_tensors(path, tensors, extra)
        self._prune("step", keep=path)

    def newest(self, at_most: int | None) -> tuple[dict, dict, dict[str, Any]] | None:
        """(weights, state, extra) of the latest readable checkpoint, at most at a given step."""
        for path in sorted(self._files("step"), reverse=True):
            try:
                tensors, extra = load_tensors(path)
            except Exception:
                continue
            if at_most is None or extra["step"] <= at_most:
                weights = {k[2:]: v for k, v in tensors.items() if k.startswith("w.")}
                return weights, {k[2:]: v for k, v in tensors.items() if k[:2] == "s."}, extra
        return None

    def newest_step(self, at_most: int) -> int:
        """Step of what `newest` gives; 0 if there is nothing."""
        found = self.newest(at_most)
        return 0 if found is None else found[2]["step"]

    def save_best(self, model: nn.Module, step: int) -> None:
        """Keep the present weights as the best so far."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"best-{step:09d}.safetensors"
        save_tensors(path, dict(_named(model, self.names)), {"step": step})
        self._prune("best", keep=path)

    def restore(self, model: nn.Module, weights: dict[str, Tensor], learner: Any) -> None:
        """Put back weights that were saved here, to where the learner has its weights."""
        copy_into(model, weights, self.names, getattr(learner, "placement", None))

    def load_best(self, step: int) -> dict[str, Tensor] | None:
        """Weights kept for `step`; None if they are not there."""
        path = self.folder / f"best-{step:09d}.safetensors"
        return load_tensors(path)[0] if path.exists() else None

    def remove(self) -> None:
        """The run is done: everything here can be rebuilt or is no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, kind: str) -> Iterable[Path]:
        return self.folder.glob(f"{kind}-*.safetensors") if self.folder.is_dir() else []

    def _prune(self, kind: str, keep: Path) -> None:
        for path in list(self._files(kind)):
            if path != keep:
                path.unlink(missing_ok=True)
