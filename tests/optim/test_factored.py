"""Low-rank directions in the forward: two thin products beside one with the weights as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.optim.tiny import lm_closure, opt, small_lm
from zolab.optim import (
    LOZO,
    InPlace,
    LayerMask,
    LazyLowRank,
    MeZO,
    Paired,
    PerLayer,
    Subspace,
    ZeroOrder,
    native,
)
from zolab.optim import engine as engine_module
from zolab.optim.backend import Term, apply_term_
from zolab.optim.native import thin
from zolab.optim.placements.factored import add_products_
from zolab.optim.placements.modulewise import RowsError

KINDS = {"lozo": lambda: LazyLowRank(2, 3), "subzero": lambda: Subspace(3, 3)}


def make(model: nn.Module, placement, direction, **options) -> ZeroOrder:
    options = {"lr": 1e-2, "eps": 1e-2, "seed": 3, **options}
    return ZeroOrder(
        model.named_parameters(), placement=placement, direction=direction, model=model, **options
    )


def losses_of(optimizer: ZeroOrder, closure, steps: int = 4) -> torch.Tensor:
    out = []
    for _ in range(steps):
        optimizer.step(closure)
        out.append(optimizer.last.losses)
    return torch.tensor(out, dtype=torch.float64)


class Nested(nn.Module):
    """A head that owns the bias of the layer inside it, as RoBERTa's and BERT's do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 12)
        self.frozen_bias = nn.Linear(12, 12)
        self.frozen_bias.bias.requires_grad_(False)
        self.narrow = nn.Linear(12, 2)  # a side shorter than 2 r: factorised in another shape
        self.wide = nn.Linear(2, 12, bias=False)
        self.head = Head(12, 20)
        self.head.decoder.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> object:
        x = self.frozen_bias(self.embed(input_ids)).tanh()
        x = x + self.wide(input=self.narrow(x))

        class Out:
            logits = self.head(x)

        return Out


class Head(nn.Module):
    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.decoder = nn.Linear(width, vocabulary)
        self.bias = nn.Parameter(torch.randn(vocabulary))
        self.decoder.bias = self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(x) + 0.1 * self.bias


def nested() -> nn.Module:
    return Nested().eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make_model", "mask"),  # the nested one has no layers to choose from
    [(opt, "dense"), (opt, "layers"), (small_lm, "dense"), (small_lm, "layers"), (nested, "dense")],
)
def test_factors_and_the_whole_product_give_the_same_losses(make_model, mask: str, kind: str):
    found = []
    for placement in (InPlace(), Paired(), PerLayer()):
        model = make_model().double()
        ids = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(1))
        masks = {} if mask == "dense" else {"mask": LayerMask(0.5)}
        optimizer = make(model, placement, KINDS[kind](), **masks)
        found.append(losses_of(optimizer, lm_closure(model, ids)))
    assert (found[0][:, 0] - found[0][:, 1]).abs().min() > 1e-6
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-6  # factors are float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_multiplies_once_and_is_never_perturbed_whole(kind: str, monkeypatch) -> None:
    model = opt()
    optimizer = make(model, Paired(), KINDS[kind]())
    weights = {p.data_ptr(): n for n, p in model.named_parameters() if p.dim() == 2}
    seen = []
    plain, pair_rows = F.linear, optimizer.engine.pair_rows

    def linear(x, weight, bias=None):
        if weight.data_ptr() in weights:
            seen.append((weights[weight.data_ptr()], x.shape[:-1].numel()))
        return plain(x, weight, bias)

    def only_vectors(info, *args):
        assert info.is_vector or "embed_pos" in info.name  # OPT has a lookup of its own there
        return pair_rows(info, *args)

    monkeypatch.setattr(F, "linear", linear)
    monkeypatch.setattr(optimizer.engine, "pair_rows", only_vectors)
    optimizer.step(lm_closure(model))
    assert sorted(n for n, _ in seen) == sorted(n for n in weights.values() if "embed_pos" not in n)
    assert {rows for _, rows in seen} == {2 * 4 * 12}


def test_layers_that_a_mask_leaves_alone_pass_once_for_both_signs(monkeypatch) -> None:
    model = small_lm()
    optimizer = MeZO(
        model.named_parameters(), mask=LayerMask(0.5), placement=Paired(), model=model, eps=1e-2
    )
    rows: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda m, a, out, name=name: rows.setdefault(name, []).append(len(out))
            )
    optimizer.step(lm_closure(model))
    masked = [
        info.name.removesuffix(".weight")
        for info in optimizer.infos
        if info.name.endswith("fc1.weight") and optimizer.engine.choice_of(info) is False
    ]
    assert len(masked) == 1
    assert rows[masked[0]] == [8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_updates_are_the_whole_product_rounded_stochastically(dtype, monkeypatch) -> None:
    """In the pieces of a sweep the same bits as at once; the slope is that of float32."""
    monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
    model = opt(dtype)
    optimizer = LOZO(
        model.named_parameters(), lr=1e-3, eps=1e-2, placement=Paired(), model=model, seed=3
    )
    before = {info.pid: info.data.clone() for info in optimizer.infos}
    optimizer.step(lm_closure(model))
    seed = optimizer._probes(1)[0].seed
    changed = 0
    for info in optimizer.infos:
        gain = optimizer.direction.gain(info.pid)
        a = -1e-3 * (optimizer.last.coefficients[0] * 1e-2 * gain / 1e-2)
        z = optimizer.direction.z(info.pid, seed, 0, info.numel, torch.device("cpu"))
        want = before[info.pid].view(-1)
        apply_term_(want, z, Term(a, seed, stochastic=True), info.pid, 0, None)
        assert torch.equal(info.data.view(-1), want), info.name
        changed += int((want != 0).sum())
    assert changed


def test_autocast_and_16_bits_follow_the_slope_of_float32() -> None:
    slopes = []
    for dtype in (torch.float32, torch.bfloat16, "autocast"):
        model = opt(torch.float32 if dtype == "autocast" else dtype)
        optimizer = make(model, Paired(), LazyLowRank(4), eps=2e-2)
        with torch.autocast("cpu", torch.bfloat16, dtype == "autocast", cache_enabled=False):
            optimizer.step(lm_closure(model))
        slopes.append(optimizer.last.projected_grad)
    assert slopes[1] == pytest.approx(slopes[0], rel=0.2)
    assert slopes[2] == pytest.approx(slopes[0], rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_in_pieces_are_the_whole_sweep(kind: str, monkeypatch) -> None:
    """However large the pieces; two seeds in one sweep read two factors."""
    finals = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(engine_module, "KEEP_BYTES", 0)
            monkeypatch.setattr("zolab.optim.products.PIECE", 1)  # a block of rows at a time
        model = opt()
        optimizer = make(model, InPlace(), KINDS[kind]())
        losses = losses_of(optimizer, lm_closure(model), 5)
        optimizer.flush()
        finals.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert torch.equal(finals[0][0], finals[1][0])
    assert all(torch.equal(a, b) for a, b in zip(finals[0][1], finals[1][1], strict=True))


@pytest.mark.skipif(
    not (native.available() and native._library().lib.zo_thin_rank()), reason="no kernel here"
)
@pytest.mark.parametrize("rank", [1, 2, 3, 6, 9, 48, 255])
@pytest.mark.parametrize("extra", [0, 1])
def test_thin_products_in_one_pass_are_those_of_torch(rank: int, extra: int, monkeypatch) -> None:
    drawn = torch.Generator().manual_seed(rank)
    for rows, n, m, scales in (
        (2, 37, 5, (0.5, -0.5)),
        (78, 64, 130, (0.5, -0.5)),
        (270, 21, 75, (0.5, -0.5)),  # more than share a panel, and not in whole lots
        (7, 9, 9, (2,)),
    ):
        x, out, left, right = (
            torch.randn(shape, generator=drawn)
            for shape in ((rows, 1, n), (rows, 1, m), (m, rank), (n, rank))
        )
        shift = (torch.randn(m, generator=drawn), 0.3) if extra else None
        found = out.clone()
        by_columns = (side.T.contiguous().T for side in (left, right))
        assert thin.Thin(*by_columns, scales, shift).add_(found, x)
        expected = add_products_(out.clone(), x, left, right, scales, shift)
        moved = x.double() @ right.double() @ left.T.double()
        if shift:
            moved += 0.3 * shift[0].double()
        sign = torch.tensor(scales).repeat_interleave(rows // len(scales)).view(-1, 1, 1)
        exact = out + sign * moved
        for given in (found, expected):
            assert torch.allclose(given.double(), exact, rtol=1e-5, atol=2e-6 * rank + 1e-5)


@pytest.mark.skipif(not native.available(), reason="needs a C compiler")
def test_under_autocast_a_layer_multiplies_once_and_not_by_the_kernels(monkeypatch) -> None:
    model, calls = opt(), []
    optimizer = make(model, Paired(), LazyLowRank())
    closure = lm_closure(model)
    monkeypatch.setattr(thin.Thin, "add_", lambda *_: pytest.fail("made for float32"))
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        "zolab.optim.placements.factored.multiplier",
        lambda _: lambda x, *rest: (calls.append(x.shape), linear(x, *rest))[1],
    )
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step(closure)
    layers = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert len(calls) == layers


def test_a_layer_whose_rows_are_not_the_batchs_is_refused_along_factors_too() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x.transpose(0, 1).contiguous())  # 6 rows of something else

    model = Turned()
    optimizer = make(model, Paired(), LazyLowRank())
    x = torch.randn(4, 6, 6)
    with pytest.raises(RowsError, match="body"):
        optimizer.step(lambda copies: [model(torch.cat([x] * copies)).sum()] * copies)
