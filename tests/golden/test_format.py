"""Every key and value that a trace may hold is understood, and nothing else passes.

The traces here are recorded on the spot by the plain loops of `plain.py`.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.conftest import TRACES
from tests.golden.plain import record
from tests.golden.repeat import run_trace

PEERS = {
    "mezo": {"repo": "princeton-nlp/MeZO", "file": "large_models/trainer.py"},
    "medium": {"repo": "princeton-nlp/MeZO", "file": "medium_models/src/trainer.py"},
    "zobench": {"repo": "ZO-Bench/ZO-LLM", "file": "zo-bench/trainer.py"},
    "zo2": {"repo": "liangyuwang/zo2", "file": "zo2/optimizer/mezo_sgd/zo.py"},
}
MODELS = {
    "opt": "zobench_opt_sgd_f64_seed0",
    "llama": "mezo_llama_ft_lm_f32_seed0",
    "roberta-prompt": "mezo_roberta_ft_f64_seed0",
}
GOLDS = [[[f"{row} {row + 5}", "80 86 19"] for row in range(4)] for _ in range(4)]
TRAINER = {"zero_order_use_trainer_optim": True, "efficient_zero_order": True}
ACCURACY = "minus accuracy"

#: name -> (program, arch, batch kind, dtype, hyper, other keys)
CASES: dict[str, tuple[str, str, str, str, dict[str, Any], dict[str, Any]]] = {
    "mezo_cls_decay_linear": (
        "mezo", "opt", "cls", "float64", {"weight_decay": 0.1, "lr_scheduler": "linear"}, {},
    ),
    "mezo_option": ("mezo", "opt", "option", "float32", {"np_seed": 3}, {}),
    "mezo_llama_f64": ("mezo", "llama", "lm", "float64", {"weight_decay": 0.1}, {}),
    "mezo_llama_lora_f32": ("mezo", "llama", "lm", "float32", {"lr": 0.01}, {"tune": "lora"}),
    "mezo_prefix_cls": ("mezo", "opt", "cls", "float64", {"zo_eps": 0.1}, {"tune": "prefix"}),
    "mezo_lora_small": ("mezo", "opt", "lm", "float64", {}, {
        "tune": "lora", "batch": {"B": 2, "T": 8}, "model_config": {"hidden_size": 32,
        "word_embed_proj_dim": 16, "num_hidden_layers": 3, "do_layer_norm_before": False},
    }),
    "mezo_f1": ("mezo", "opt", "lm", "float64", {"lr": 0.1, "zo_eps": 0.1},
                {"objective": "minus mean token-F1", "golds": GOLDS}),
    "medium_adam_linear_n": ("medium", "roberta-prompt", "prompt", "float64", {
        **TRAINER, "optimizer": "adam", "zero_order_sample": 4, "lr": 1e-4,
        "zero_order_sample_scheduler": "linear"}, {}),
    "medium_sgd_n3": ("medium", "roberta-prompt", "prompt", "float64", {
        **TRAINER, "optimizer": "sgd", "zero_order_sample": 3,
        "zero_order_sample_scheduler": "constant"}, {}),
    "medium_accuracy": ("medium", "roberta-prompt", "prompt", "float64",
                        {"optimize_acc": True, "zo_eps": 0.3}, {"objective": ACCURACY}),
    "medium_decay": ("medium", "roberta-prompt", "prompt", "float32", {"weight_decay": 0.1}, {}),
    "medium_lora": ("medium", "roberta-prompt", "prompt", "float64", {}, {"tune": "lora"}),
    "medium_prefix": ("medium", "roberta-prompt", "prompt", "float64", {"zo_eps": 0.1},
                      {"tune": "prefix"}),
    "zobench_one_side": ("zobench", "opt", "lm", "float64",
                         {"trainer": "zo_sgd", "perturbation_mode": "one_side"}, {}),
    "zobench_one_side_q2_adam": ("zobench", "opt", "cls", "float64", {
        "trainer": "zo_adam", "optimizer": "adam", "q": 2, "perturbation_mode": "one_side"}, {}),
    "zobench_q2_momentum": ("zobench", "opt", "option", "float64",
                            {"q": 2, "momentum": 0.9, "weight_decay": 0.1}, {}),
    "zobench_linear": ("zobench", "opt", "lm", "float64",
                       {"trainer": "zo_sgd", "lr_scheduler": "linear"}, {}),
    "zobench_sign_q3": ("zobench", "opt", "lm", "float64",
                        {"trainer": "zo_sign_opt", "optimizer": "sgd", "q": 3}, {}),
    "zobench_sign_momentum": ("zobench", "opt", "lm", "float64",
                              {"trainer": "zo_sign_opt", "momentum": 0.5}, {}),
    "zobench_sign_adam": ("zobench", "opt", "lm", "float64",
                          {"trainer": "zo_sign_opt", "optimizer": "adam"}, {}),
    "zobench_cons_one_side": ("zobench", "opt", "lm", "float64",
                              {"trainer": "zo_conserv", "perturbation_mode": "one_side"}, {}),
    "zobench_cons_f32": ("zobench", "llama", "cls", "float32",
                         {"trainer": "zo_conserv"}, {}),
    "zobench_blocks_coordinate": ("zobench", "opt", "lm", "float64", {
        "module_wise_perturbation": True, "coordinate_perturbation": True}, {}),
    "zobench_layers_only": ("zobench", "opt", "lm", "float64", {
        "module_wise_perturbation": True, "coordinate_perturbation": True}, {"note": "frozen"}),
    "zobench_layers_adam": ("zobench", "opt", "lm", "float64", {
        "module_wise_perturbation": True, "coordinate_perturbation": False,
        "trainer": "zo_adam", "perturbation_mode": "one_side"}, {"note": "frozen"}),
    "zobench_blocks_llama": ("zobench", "llama", "lm", "float32", {
        "module_wise_perturbation": True, "coordinate_perturbation": True}, {}),
    "zobench_forward_momentum": ("zobench", "opt", "cls", "float64", {
        "trainer": "forward_grad", "momentum": 0.9}, {}),
    "zobench_forward_llama": ("zobench", "llama", "lm", "float32",
                              {"trainer": "forward_grad", "weight_decay": 0.1}, {}),
    "zo2_decay": ("zo2", "opt", "lm", "float64", {"weight_decay": 0.1}, {}),
    "zo2_seqcls": ("zo2", "opt", "lm tokens; labels=(step+row) mod 2", "float64", {},
                   {"model_class": "OPTForSequenceClassification"}),
}  # fmt: skip


@functools.cache
def _template(arch: str) -> dict[str, Any]:
    raw = json.loads((TRACES / f"{MODELS[arch]}.json").read_text())
    keep = ("arch", "model_config", "noise_order", "label_word_list", "tune")
    return {key: raw[key] for key in keep if key in raw}


def _described(name: str) -> dict[str, Any]:
    program, arch, kind, dtype, hyper, more = copy.deepcopy(CASES[name])
    raw = copy.deepcopy(_template(arch))
    raw["model_config"] |= more.pop("model_config", {})
    batch = {"kind": kind, "B": 4, "T": 16, **more.pop("batch", {})}
    raw |= {"peer": PEERS[program], "dtype": dtype, "hyper": hyper, "batch": batch, **more}
    width, layers = raw["model_config"]["hidden_size"], raw["model_config"]["num_hidden_layers"]
    if raw.get("model_class"):
        raw["noise_order"].append(["score.weight", [2, width]])
    if raw["tune"] != "ft":
        raw["noise_order"] = _adapters(raw, width, layers)
        raw["init_checksums"] = {n: [0.0] * 10 for n, _ in raw["noise_order"]}
        if arch == "roberta-prompt":
            raw["init_checksums"]["lm_head.decoder.weight"] = [0.0] * 10
    return raw


def _adapters(raw: dict[str, Any], width: int, layers: int) -> list[list[Any]]:
    attention, query, value = {
        "opt": ("model.decoder.layers.{}.self_attn", "q_proj", "v_proj"),
        "llama": ("model.layers.{}.self_attn", "q_proj", "v_proj"),
        "roberta-prompt": ("roberta.encoder.layer.{}.attention.self", "query", "value"),
    }[raw["arch"]]
    out: list[list[Any]] = []
    for layer in range(layers):
        place = attention.format(layer)
        if raw["tune"] == "prefix":
            out += [[f"{place}.prefix_{x}", [3, width]] for x in ("keys", "values")]
        else:
            for matrix in (value, query):
                out.append([f"{place}.{matrix}.lora_A", [4, width]])
                out.append([f"{place}.{matrix}.lora_B", [width, 4]])
    if raw["arch"] == "roberta-prompt":
        out += [x for x in raw["noise_order"] if x[0].startswith(("lm_head.", "classifier."))]
    return out


@pytest.mark.parametrize("name", CASES)
def test_combination(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    record(_described(name), path)
    run_trace(path)


# -- what must fail --------------------------------------------------------------------------------


def _broken(change: dict[str, Any], tmp_path: Path) -> Path:
    raw = json.loads((TRACES / "zobench_opt_sgd_f64_seed0.json").read_text())
    for key, value in change.items():
        node = raw
        *parents, last = key.split("/")
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[int(last) if isinstance(node, list) else last] = value
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"peer/repo": "someone/else"},
        {"arch": "mamba"},
        {"tune": "bitfit"},
        {"dtype": "float8"},
        {"init": "formula-v2"},
        {"model_class": "OPTForQuestionAnswering"},
        {"batch/kind": "span"},
        {"batch/shuffle": True},
        {"objective": "minus BLEU"},
        {"hyper/trainer": "zo_new"},
        {"hyper/optimizer": "lion"},
        {"hyper/clip": 1.0},
        {"hyper/lr_scheduler": "cosine"},
        {"steps/3/curvature": 1.0},
        {"noise_order/0/0": "model.decoder.embed_other.weight"},
        {"steps": []},
        {"hyper/np_seed": 1},
        {"hyper/momentum": 0.9},
        {"steps/2/losses/0": 5.4},
        {"steps/2/losses": []},
        {"steps/4/projected_grad": 0.0},
        {"steps/9/lr": 0.002},
        {"steps/1/seeds": [1]},
        {"steps/1/sparse_seed": 1},
        {"steps/1/perturb_scales": [1, -1]},
        {"steps/9/params/model.decoder.final_layer_norm.bias/3": 0.1},
        {"init_checksums/model.decoder.final_layer_norm.bias/0": 0.1},
        {"z_probe_first_seed/model.decoder.embed_tokens.weight/0": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_that_says_something_else_fails(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - any failure is a failure
        run_trace(_broken(change, tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": 3}'])
def test_no_trace_at_all_fails(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text(text)
    with pytest.raises(Exception):  # noqa: B017, PT011
        run_trace(path)


def test_null_hyper_values_mean_absent(tmp_path: Path) -> None:
    run_trace(_broken({"hyper/momentum": None, "hyper/q": None}, tmp_path))
