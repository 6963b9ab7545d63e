"""Steps whose losses the host has not read: the bits of the plain way, and nothing that waits."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.optim.small import Net, make
from tests.test_lower import model_of
from tests.test_shared import EXAMPLES
from zolab.objectives import BatchLoss, CausalScorer
from zolab.optim import (
    Adam,
    InPlace,
    MeZOAdam,
    MeZOSVRG,
    Momentum,
    OnePoint,
    OnePointMeZO,
    OneSided,
    Paired,
    PerLayer,
    SmallWeights,
    StepRecord,
    TwoSided,
    ZeroOrder,
    ZOConservative,
)
from zolab.optim.late import Late, nine_digits
from zolab.optim.placements import pieces

#: The step whose losses are not finite.
BAD = 3


def bits(numbers: list[float]) -> list[bytes]:
    return [b"nan" if math.isnan(x) else struct.pack("<d", x) for x in numbers]


def test_nine_digits_are_those_of_the_host() -> None:
    source = torch.Generator().manual_seed(1)
    every = torch.randint(-(2**31), 2**31, (60_000,), generator=source).to(torch.int32)
    wild = every.view(torch.float32)
    wild = wild[(wild.abs() >= 1e-13) & (wild.abs() < 1e9)]
    usual = torch.rand(30_000, generator=source) * 12
    # Numbers that lie between two decimals: odd / 2**k has k digits after the point, the last a 5.
    odd = 2.0 * torch.randint(0, 1 << 22, (40_000,), generator=source) + 1
    halves = odd / 2.0 ** torch.randint(1, 24, odd.shape, generator=source)
    edges = torch.tensor(
        [0.0, -0.0, 1e-13, 1e-5, 0.1, 1.0, 10.0, 9.9999999e8, math.nan, math.inf, -math.inf]
    )
    numbers = torch.cat((wild, usual, halves, -halves, edges)).double()
    expected = [float(f"{x:.9g}") for x in numbers.tolist()]
    assert bits(nine_digits(numbers).tolist()) == bits(expected)
    one = Late(numbers[5])
    assert float(one.rounded(9)) == expected[5]
    assert float(one.rounded(17)) == float(numbers[5])


def trained(late: bool, dtype: torch.dtype, **options: object) -> tuple[list, list]:
    model = Net().to(dtype)
    with torch.no_grad():
        model.head.weight[0, :3] = -0.0  # a step that is skipped must not make it +0
    optimizer = make(model, **options)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(4)).to(dtype)
    target, records = torch.arange(6) % 3, []

    def closure(copies: int) -> list:
        logits = model(x.repeat(copies, 1)).float()
        terms = nn.functional.cross_entropy(logits, target.repeat(copies), reduction="none")
        if optimizer.num_steps + 1 == BAD:
            terms = terms * math.nan
        sums = terms.double().view(copies, -1).sum(1)
        return [Late(one) / 6 for one in sums] if late else (sums / 6).tolist()

    for _ in range(5):
        reported = optimizer.step(closure)
        records.append(optimizer.taken)
        assert isinstance(reported, Late) == late
    optimizer.flush()
    # Read at the end: whatever a step changed of an earlier one's numbers would show.
    return [p.detach() for p in model.parameters()], [repr(r.read()) for r in records]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("placement", "estimator", "sparsity"),
    [
        (InPlace, TwoSided(2), 0.0),
        (InPlace, TwoSided(), 0.5),
        (Paired, TwoSided(), 0.0),
        (Paired, OneSided(2), 0.5),
        (PerLayer, OneSided(), 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_late_step_has_the_bits_of_one_that_is_read(
    placement, estimator, sparsity, dtype, decay, native, monkeypatch
) -> None:
    if not native:
        monkeypatch.setenv("ZOLAB_NATIVE", "0")
    found, expected = (
        trained(
            late,
            dtype,
            placement=placement(),
            estimator=estimator,
            mask=SmallWeights(sparsity, vectors="masked"),
            weight_decay=decay,
        )
        for late in (True, False)
    )
    assert found[1] == expected[1]
    assert ["coefficients=None" in record for record in found[1]] == [
        step == BAD for step in range(1, 6)
    ]
    for ours, plain in zip(found[0], expected[0], strict=True):
        assert torch.equal(ours, plain)
        assert torch.equal(ours.signbit(), plain.signbit())


@pytest.mark.parametrize(
    ("family", "placement"),
    [
        *(("opt", InPlace), ("opt", Paired), ("opt", PerLayer)),
        *(("llama", InPlace), ("qwen2", InPlace), ("gpt2", Paired), ("gpt_neox", InPlace)),
    ],
)
def test_nothing_within_a_step_looks_at_a_number(family, placement, monkeypatch) -> None:
    """Tensors without data, which refuse whoever asks what is in them."""
    monkeypatch.setattr(pieces, "is_here", lambda tensor: False)
    # Shown tensors without data, transformers would leave out what it asks of others.
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: False)
    monkeypatch.setattr(ZeroOrder, "_check_numbers", lambda self: None)  # once, at the start
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model_of(family)
        scorer = CausalScorer(model, pad_id=1)
        optimizer = make(model, placement=placement(), weight_decay=0.1)
        for _ in range(2):
            batch = scorer.batch(EXAMPLES, trains=True)
            optimizer.step(BatchLoss(scorer, [batch], late=True))
        with pytest.raises(DataDependentOutputException):
            float(optimizer.taken.loss)
        with pytest.raises(DataDependentOutputException):
            optimizer.step(BatchLoss(scorer, [batch]))


@pytest.mark.parametrize("placement", [Paired, PerLayer])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_rows_looked_up_one_by_one_have_the_bits_of_those_counted_first(
    placement, sparsity, monkeypatch
) -> None:
    def losses() -> list[float]:
        model = model_of("opt")
        mask = SmallWeights(sparsity, vectors="masked")
        optimizer = make(model, placement=placement(), mask=mask)
        scorer = CausalScorer(model, pad_id=1)
        optimizer.step(BatchLoss(scorer, [scorer.batch(EXAMPLES)]))
        return [*optimizer.last.losses]

    expected = losses()
    monkeypatch.setattr(pieces, "is_here", lambda tensor: False)
    assert losses() == expected


def test_who_needs_losses_at_once_says_so() -> None:
    def waits_for(**options: object) -> str | None:
        return make(Net(), **options).waits_for

    assert waits_for(placement=InPlace(), mask=SmallWeights(0.5)) is None
    assert waits_for(estimator=OneSided(3)) is None
    assert waits_for(rule=Adam()) == "Adam"
    assert waits_for(rule=Momentum()) == "Momentum"
    assert waits_for(estimator=OnePoint()) == "OnePoint"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_on_a_gpu_nothing_within_a_step_waits(placement) -> None:
    def run(late: bool) -> tuple[list[str], torch.Tensor]:
        model = model_of("opt").cuda()
        scorer = CausalScorer(model, pad_id=1)
        optimizer, records = make(model, placement=placement()), []
        for number in range(5):
            # Tables, compilers and pools are ready after the first steps.
            torch.cuda.set_sync_debug_mode("error" if late and number > 2 else "default")
            try:
                batch = scorer.batch(EXAMPLES, trains=True)
                optimizer.step(BatchLoss(scorer, [batch], late=late))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            records.append(optimizer.taken)
        optimizer.flush()
        weights = torch.cat([p.detach().view(-1) for p in model.parameters()])
        return [repr(record.read()) for record in records], weights.cpu()

    (found, ours), (expected, plain) = run(late=True), run(late=False)
    assert found == expected
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("method", [MeZOAdam, OnePointMeZO, ZOConservative, MeZOSVRG])
def test_what_needs_a_number_reads_it(method) -> None:
    def run(late: bool) -> list[torch.Tensor]:
        model = Net()
        x, y = torch.ones(3, 5), torch.arange(3)

        def loss() -> Late | torch.Tensor:
            value = nn.functional.cross_entropy(model(x), y)
            return Late(value) if late else value

        optimizer = method(model.named_parameters(), lr=1e-2, placement=InPlace())
        if method is MeZOSVRG:
            optimizer.full_batch = lambda: [lambda copies: [loss()]]
        for _ in range(3):
            optimizer.step(loss)
        optimizer.flush()
        assert isinstance(optimizer.taken, StepRecord)
        return [p.detach() for p in model.parameters()]

    for found, expected in zip(run(True), run(False), strict=True):
        assert torch.equal(found, expected)
