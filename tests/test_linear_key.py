"""`model.linear`: what multiplies a loaded model's linear layers."""

from __future__ import annotations

import pytest
from torch import nn

from zolab.errors import UserError
from zolab.models.load import load_model
from zolab.optim import linear
from zolab.optim.linear import Linear

MODEL = {
    "path": "opt-prompt-2m",
    "init": "pretrained",
    "revision": None,
    "config": {},
    "dtype": "float32",
    "device": "cpu",
}


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize(
    ("name", "pays", "kind"),
    [
        ("torch", True, nn.Linear),
        ("auto", False, nn.Linear),
        ("auto", True, Linear),
        ("onednn", False, Linear),
    ],
)
def test_the_key_decides(name, pays, kind, monkeypatch) -> None:
    monkeypatch.setattr(linear, "is_there", lambda: True)
    monkeypatch.setattr(linear, "pays", lambda: pays)
    model = load_model({**MODEL, "linear": name}, seed=0).model
    assert kinds(model) == {kind}


def test_adapters_and_their_base_are_changed(monkeypatch) -> None:
    monkeypatch.setattr(linear, "is_there", lambda: True)
    tuning = {"kind": "lora"}
    loaded = load_model({**MODEL, "linear": "onednn", "tuning": tuning}, seed=0)
    names = {n for n, m in loaded.model.named_modules() if type(m) is Linear}
    assert any(name.endswith("base_layer") for name in names)
    assert any("lora_A" in name for name in names)


def test_a_torch_without_onednn_is_refused_where_it_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(linear, "is_there", lambda: False)
    with pytest.raises(UserError, match=r"model\.linear = 'onednn'.*expected auto or torch"):
        load_model({**MODEL, "linear": "onednn"}, seed=0)
