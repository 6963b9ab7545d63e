"""What a trace file says, checked: whatever is not understood raises `NotUnderstood`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PROGRAMS = {
    ("princeton-nlp/MeZO", "large_models"): "mezo_large",
    ("princeton-nlp/MeZO", "medium_models"): "mezo_medium",
    ("ZO-Bench/ZO-LLM", ""): "zobench",
    ("liangyuwang/zo2", ""): "zo2",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
COMMON = {"np_seed", "torch_seed", "steps", "lr", "zo_eps", "weight_decay", "lr_scheduler"}
#: Keys of `hyper` each program's files may hold, with the values that are understood.
HYPER: dict[str, dict[str, Any]] = {
    "mezo_large": {},
    "mezo_medium": {
        "optimizer": ("sgd", "adam"),
        "efficient_zero_order": (True,),
        "zero_order_use_trainer_optim": (True, False),
        "zero_order_sample": int,
        "zero_order_sample_scheduler": ("constant", "linear"),
        "optimize_acc": (True, False),
    },
    "zobench": {
        "trainer": ("zo_sgd", "zo_adam", "zo_sign_opt", "zo_conserv", "forward_grad"),
        "optimizer": ("sgd", "adam"),
        "momentum": float,
        "q": int,
        "perturbation_mode": ("two_side", "one_side"),
        "module_wise_perturbation": (True, False),
        "coordinate_perturbation": (True, False),
    },
    "zo2": {},
}
STEP = {
    *("step", "seeds", "losses", "perturb_scales", "projected_grad", "lr", "params"),
    *("projected_grads_from_losses", "restore_max_abs_diff", "sparse_seed", "decoded"),
}
KINDS = ("lm", "option", "cls", "prompt", "seqcls")
SEQCLS = "lm tokens; labels=(step+row) mod 2"


class NotUnderstood(ValueError):
    """The file says something that this harness cannot reproduce."""


@dataclass(frozen=True)
class Trace:
    """One file.

    Attributes:
        program: which code base made it: mezo_large, mezo_medium, zobench or zo2.
        arch: opt, llama or roberta-prompt.
        head: lm or seqcls.
        kind: wording of the batches.
        objective: loss, f1 or accuracy.
        noise: (name, shape) of what is drawn and trained, in order.
    """

    program: str
    arch: str
    head: str
    config: dict[str, Any]
    dtype: torch.dtype
    tune: str
    kind: str
    rows: int
    tokens: int
    objective: str
    hyper: dict[str, Any]
    noise: list[tuple[str, tuple[int, ...]]]
    checksums: dict[str, list[float]]
    z_first: dict[str, list[float]]
    steps: list[dict[str, Any]]
    label_words: list[int] = field(default_factory=list)
    golds: list = field(default_factory=list)
    note: str = ""

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.noise]


def read_trace(path: Path) -> Trace:
    """Read and check a file; NotUnderstood (or KeyError, JSON errors) when it makes no sense."""
    raw = json.loads(path.read_text())
    program = _program(raw)
    kind = raw["batch"]["kind"]
    kind = "seqcls" if kind.replace(" ", "") == SEQCLS.replace(" ", "") else kind
    _require(kind in KINDS, f"batch.kind = {kind!r}")
    _require(set(raw["batch"]) <= {"kind", "B", "T"}, f"batch holds {sorted(raw['batch'])}")
    _require(raw["arch"] in ("opt", "llama", "roberta-prompt"), f"arch = {raw['arch']!r}")
    _require(raw["dtype"] in DTYPES, f"dtype = {raw['dtype']!r}")
    _require(raw["tune"] in ("ft", "lora", "prefix"), f"tune = {raw['tune']!r}")
    _require(raw["init"] == "formula-v1", f"init = {raw['init']!r}")
    hyper = dict(raw["hyper"])
    _check_hyper(program, hyper)
    for i, step in enumerate(raw["steps"]):
        _require(set(step) <= STEP, f"step {i} holds {sorted(set(step) - STEP)}")
    _require(len(raw["steps"]) > 0, "no steps")
    if (raw["arch"] == "roberta-prompt") != (kind == "prompt"):
        raise NotUnderstood(f"arch {raw['arch']} with batch kind {kind}")
    return Trace(
        program=program,
        arch=raw["arch"],
        head=_head(raw, kind),
        config=raw["model_config"],
        dtype=DTYPES[raw["dtype"]],
        tune=raw["tune"],
        kind=kind,
        rows=raw["batch"]["B"],
        tokens=raw["batch"]["T"],
        objective=_objective(raw, hyper),
        hyper=hyper,
        noise=[(name, tuple(shape)) for name, shape in raw["noise_order"]],
        checksums=raw["init_checksums"],
        z_first=raw["z_probe_first_seed"],
        steps=raw["steps"],
        label_words=raw.get("label_word_list", []),
        golds=raw.get("golds", []),
        note=raw.get("note", ""),
    )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise NotUnderstood(what)


def _program(raw: dict[str, Any]) -> str:
    repo, file = raw["peer"]["repo"], raw["peer"].get("file", "")
    for (name, folder), program in PROGRAMS.items():
        if repo == name and file.startswith(folder):
            return program
    raise NotUnderstood(f"peer = {repo} {file}")


def _check_hyper(program: str, hyper: dict[str, Any]) -> None:
    allowed = HYPER[program]
    for key, value in hyper.items():
        if key in COMMON or value is None:
            continue
        _require(key in allowed, f"hyper.{key} = {value!r}")
        rule = allowed[key]
        fits = value in rule if isinstance(rule, tuple) else isinstance(value, int | float)
        _require(fits, f"hyper.{key} = {value!r}")
    schedule = hyper.get("lr_scheduler", "constant")
    _require(schedule in ("constant", "linear"), f"hyper.lr_scheduler = {schedule!r}")


def _head(raw: dict[str, Any], kind: str) -> str:
    name = raw.get("model_class")
    if kind == "seqcls":
        _require(name == "OPTForSequenceClassification", f"batch kind {kind} with {name}")
        return "seqcls"
    known = {
        "opt": "OPTForCausalLM",
        "llama": "LlamaForCausalLM",
        "roberta-prompt": "RobertaForMaskedLM",
    }
    _require(name in (None, known[raw["arch"]]), f"model_class = {name!r}")
    return "lm"


def _objective(raw: dict[str, Any], hyper: dict[str, Any]) -> str:
    text = raw.get("objective") or ""
    accuracy = "acc" in text.lower() or bool(hyper.get("optimize_acc"))
    if accuracy:
        _require(raw["arch"] == "roberta-prompt", f"objective {text!r} for arch {raw['arch']}")
        return "accuracy"
    if "f1" in text.lower():
        _require("golds" in raw and raw["batch"]["kind"] == "lm", f"objective = {text!r}")
        return "f1"
    _require(text == "" or "cross" in text.lower(), f"objective = {text!r}")
    return "loss"
