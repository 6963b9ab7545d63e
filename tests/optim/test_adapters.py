"""LoRA's terms added at once give the losses of peft's own way, and stand back where more is asked
for than they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from tests.optim.tiny import TOKENS, VOCAB, lm_closure, opt
from zolab import optim
from zolab.models.tuning import Lora
from zolab.optim import ZeroOrder, native
from zolab.optim.native.thin import Thin, takes_thin
from zolab.optim.placements import adapters
from zolab.optim.placements.modulewise import RowsError
from zolab.optim.selfcheck import check_paired, check_reads

pytestmark = pytest.mark.skipif(
    not (native.available() and takes_thin(8)), reason="needs a C compiler and AVX-512"
)


def tuned(r: int = 3) -> nn.Module:
    """A model with LoRA, always the same weights, B not zero."""
    model = opt()
    Lora(r=r).apply(model, VOCAB)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.1, generator=generator)
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if adapters.adapter_of(m)]


def optimizer_of(model: nn.Module, placement: optim.Placement, seed: int = 5, **parts) -> ZeroOrder:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return ZeroOrder(named, lr=1e-2, eps=1e-2, model=model, placement=placement, seed=seed, **parts)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Rows that terms were added to."""
    rows = []
    add = Thin.add_

    def noted(self, out, x, relu=False) -> bool:
        rows.append(len(x))
        return add(self, out, x, relu)

    monkeypatch.setattr(Thin, "add_", noted)
    return rows


def losses_of(model: nn.Module, placement: optim.Placement, steps: int = 3, **parts) -> list[float]:
    optimizer = optimizer_of(model, placement, **parts)
    closure, out = lm_closure(model), []
    for _ in range(steps):
        optimizer.step(closure)
        out += optimizer.last.losses
    return out


@pytest.mark.parametrize("placement", [optim.Paired, optim.PerLayer])
@pytest.mark.parametrize("r", [1, 3, 8])
@pytest.mark.parametrize("mask", [optim.Dense, lambda: optim.SmallWeights(0.5)])
def test_the_losses_are_those_of_perturbed_weights(placement, r, mask, counted) -> None:
    expected = losses_of(tuned(r), optim.InPlace(), mask=mask())
    assert not counted
    got = losses_of(tuned(r), placement(), mask=mask())
    assert counted
    assert got == pytest.approx(expected, abs=2e-6)
    assert got != pytest.approx(losses_of(tuned(r), placement(), seed=6), abs=1e-4)


def test_matrices_that_are_at_hand_and_those_that_are_not_have_the_same_bits() -> None:
    found = []
    for prepares in (True, False):
        model = tuned()
        optimizer = optimizer_of(model, optim.Paired())
        optimizer.placement.modules.prepares = prepares
        optimizer.step(lm_closure(model))
        found.append(optimizer.last.losses)
    assert found[0] == found[1]


def test_one_sign_and_a_clean_look_are_theirs_alone(counted) -> None:
    got = losses_of(tuned(), optim.Paired(), estimator=optim.OneSided(num_probes=2))
    expected = losses_of(tuned(), optim.InPlace(), estimator=optim.OneSided(num_probes=2))
    assert got == pytest.approx(expected, abs=2e-6)
    assert counted


def _hooked(of: Callable[[adapters.Adapter], nn.Module], before: bool) -> Callable:
    def change(model: nn.Module) -> Callable[[], None]:
        seen = []
        module = of(adapters.adapter_of(layers_of(model)[0]))
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        register(lambda *args: seen.append(1))
        return lambda: pytest.fail("the hook was not called") if not seen else None

    return change


def _dropout(model: nn.Module) -> None:
    for layer in layers_of(model):
        layer.lora_dropout["default"] = nn.Dropout(0.1).eval()


def _disabled(model: nn.Module) -> None:
    for layer in layers_of(model):
        layer._disable_adapters = True


def _biased(model: nn.Module) -> None:
    for layer in layers_of(model):
        layer.lora_B["default"].bias = nn.Parameter(torch.full((32,), 0.1), requires_grad=False)


def _another(model: nn.Module) -> None:
    class Twice(type(layers_of(model)[0])):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    for layer in layers_of(model):
        layer.__class__ = Twice


def _own_forward(model: nn.Module) -> None:
    for layer in layers_of(model):
        layer.forward = lambda x, plain=layer.forward: 2.0 * plain(x)


CHANGES: dict[str, Callable] = {
    "hook_on_base": _hooked(lambda a: a.base, False),
    "hook_on_a": _hooked(lambda a: a.down, True),
    "hook_on_b": _hooked(lambda a: a.up, False),
    "hook_on_dropout": _hooked(lambda a: a.drop, True),
    "dropout": _dropout,
    "disabled": _disabled,
    "bias": _biased,
    "another_forward": _another,
    "own_forward": _own_forward,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_more_goes_peft_s_way(change, counted) -> None:
    check = []
    found = []
    for placement in (optim.Paired(), optim.InPlace()):
        model = tuned()
        check.append(CHANGES[change](model))
        found.append(losses_of(model, placement, steps=2))
    # 2 layers of q and v, both halves, 2 steps; a hook is on one of them
    assert len(counted) == (2 * 2 * 3 if "hook" in change else 0)
    assert found[0] == pytest.approx(found[1], abs=2e-6)
    for hook in filter(None, check):
        hook()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_peft_s_way(dtype, counted) -> None:
    model = tuned().to(dtype)
    losses = losses_of(model, optim.Paired(), steps=1)
    assert not counted
    assert losses == pytest.approx(losses_of(tuned(), optim.Paired(), steps=1), abs=0.1)


def test_autocast_goes_peft_s_way(counted) -> None:
    model = tuned()
    plain = lm_closure(model)

    def closure(copies: int) -> Sequence[float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(copies)

    optimizer_of(model, optim.Paired()).step(closure)
    assert not counted


def test_a_layer_that_is_called_with_other_rows_is_refused() -> None:
    model = tuned()
    (layer, *_) = layers_of(model)
    optimizer = optimizer_of(model, optim.Paired())

    def closure(copies: int) -> Sequence[float]:
        with torch.no_grad():
            ids = torch.zeros(2 * copies, TOKENS, dtype=torch.int64)
            model(input_ids=ids)
            layer(torch.zeros(6, TOKENS, 32))
        return [0.0] * copies

    with pytest.raises(RowsError, match="lora_A"):
        optimizer.step(closure)
    assert "forward" not in layer.__dict__  # nothing stays on the model


def test_the_self_check_passes_and_nothing_stays_on_the_model(counted) -> None:
    model = tuned()
    optimizer = optimizer_of(model, optim.Paired())
    closure = lm_closure(model)
    before = closure(1)
    check_paired(optimizer, closure, check_reads(optimizer, closure))
    assert len(counted) == 4 + 4 + 8
    assert optimizer.placement.modules.entered == {info.pid for info in optimizer.infos}
    assert closure(1) == before
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_what_is_held_is_declared(monkeypatch) -> None:
    model = tuned()
    optimizer = optimizer_of(model, optim.Paired())
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    ups = sum(size for name, size in sizes.items() if "lora_B" in name)
    declared = optimizer.memory().probing
    assert declared == 8 * sum(sizes.values()) + 8 * ups
    held = []
    made = adapters.by_columns
    monkeypatch.setattr(
        adapters, "by_columns", lambda ups: held.extend(made(ups)) or held[-len(ups) :]
    )
    modules = optimizer.placement.modules
    with modules.evaluating(1, [1e-3], None):
        pairs = [t for pair in modules._ready.pairs.values() for t in pair]
        assert 4 * sum(t.numel() for t in [*pairs, *held]) == declared
