"""Linear layers by oneDNN: equal to rounding, and torch wherever oneDNN would be wrong."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from zolab import optim
from zolab.optim import linear
from zolab.optim.placements.rows import is_plain

pytestmark = pytest.mark.skipif(not linear.is_there(), reason="this torch has no oneDNN")

ROWS, WIDE, TALL = 64, 256, 512


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(WIDE, TALL).requires_grad_(False)
    linear.use_onednn(layer)
    return layer


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, WIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often oneDNN's product was asked for."""
    made: list[int] = []
    plain = torch.ops.mkldnn._linear_pointwise
    told = lambda *args: made.append(1) or plain(*args)  # noqa: E731
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", told)
    return made


def torchs(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("shape", [(ROWS, WIDE), (4, 16, WIDE), (2, 2, 16, WIDE)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_torchs_to_rounding(shape, bias, calls) -> None:
    layer = nn.Linear(WIDE, TALL, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    exact = nn.functional.linear(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None
    )
    assert linear.use_onednn(layer) == 1
    found = layer(x)
    assert calls
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 1e-5


def test_a_layer_keeps_its_names_and_hooks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LazyLinear(2))
    model(torch.ones(1, 4))  # a lazy layer becomes a plain one
    names, seen = list(model.state_dict()), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    assert linear.use_onednn(model) == 2
    assert list(model.state_dict()) == names
    assert is_plain(model[0], nn.Linear)
    assert isinstance(model[0], nn.Linear)
    assert repr(model[0]).startswith("Linear(in_features=4")
    model(torch.ones(1, 4))
    assert seen
    assert linear.use_torch(model) == 2
    assert type(model[0]) is nn.Linear


def test_a_layer_of_another_kind_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(4, 4))
    assert linear.use_onednn(model) == 0
    assert type(model[0]) is Scaled


def test_small_products_stay_torchs(calls) -> None:
    layer = nn.Linear(32, 32).requires_grad_(False)
    linear.use_onednn(layer)
    x = torch.randn(8, 32)
    assert torch.equal(layer(x), torchs(layer, x))
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_torchs(layer, x, dtype, calls) -> None:
    layer, x = layer.to(dtype), x.to(dtype)
    assert torch.equal(layer(x), torchs(layer, x))
    assert not calls


def test_autocast_stays_torchs(layer, x, calls) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), torchs(layer, x))
        assert layer(x).dtype == torch.bfloat16
    assert not calls


def test_back_propagation_stays_torchs(layer, x, calls) -> None:
    layer.weight.requires_grad_(True)
    layer(x).square().sum().backward()
    gradient = layer.weight.grad.clone()
    assert not calls
    layer.weight.grad = None
    torchs(layer, x).square().sum().backward()
    assert torch.equal(gradient, layer.weight.grad)
    with torch.no_grad():
        layer(x)
    assert calls


def test_tangents_are_not_lost(layer, x) -> None:
    tangent = torch.randn_like(x)
    with torch.no_grad(), forward_ad.dual_level():
        out = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
        assert torch.equal(out, tangent @ layer.weight.T)
    found = torch.func.jvp(layer, (x,), (tangent,))[1]
    torch.testing.assert_close(found, tangent @ layer.weight.T)


@pytest.mark.parametrize("placement", [optim.InPlace, optim.Paired, optim.PerLayer])
@pytest.mark.parametrize("direction", [optim.Gaussian, optim.LazyLowRank])
def test_steps_are_torchs_to_rounding(placement, direction, calls) -> None:
    """Ten steps of a model whose layers all multiply by oneDNN."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(WIDE, TALL), nn.Tanh(), nn.Linear(TALL, WIDE))
    x = torch.randn(64, WIDE)
    losses = []
    for change in (linear.use_onednn, linear.use_torch):
        model = copy.deepcopy(start)
        change(model)
        optimizer = optim.ZeroOrder(
            model.named_parameters(),
            lr=1e-3,
            eps=1e-3,
            direction=direction(),
            placement=placement(),
            model=model,
        )

        @torch.no_grad()
        def closure(copies: int = 1, model: nn.Module = model) -> list[float]:
            outs = model(x.repeat(copies, 1)).chunk(copies)
            return [out.square().mean() for out in outs]

        losses.append([optimizer.step(closure) for _ in range(10)])
    assert calls
    assert losses[0] != losses[1]  # rounding: otherwise oneDNN was not what multiplied
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-4, atol=0)


# -- where it is used ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        ("Processor\t: ARM\n", "DEFAULT", False),
        (None, "AVX512", False),
    ],
)
def test_the_processor_decides(told, capability, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert linear.pays.__wrapped__() is expected


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_torch_without_it_says_so_and_goes_on(fault, layer, x, monkeypatch) -> None:
    def broken(x: torch.Tensor, *_: object) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("not built with it")
        return torch.zeros(len(x), 16)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", broken)
    with pytest.warns(RuntimeWarning, match="no oneDNN for linear layers"):
        assert linear.is_there.__wrapped__() is False
    monkeypatch.setattr(linear, "is_there", lambda: False)
    assert torch.equal(layer(x), torchs(layer, x))


def test_looking_draws_no_random_number() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear.is_there.__wrapped__()
    assert torch.equal(torch.get_rng_state(), before)
