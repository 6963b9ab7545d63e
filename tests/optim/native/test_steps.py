"""Updates by moments inside the native sweeps, against plain torch."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from tests.optim.native.parts import (
    KINDS,
    PID,
    SEED,
    Source,
    assert_same_bits,
    needs_compiler,
    random_mask,
    specification,
    weights,
)
from tests.optim.native.updates import UPDATES, check_update, update
from tests.optim.small import make, steps
from tests.optim.tiny import lm_closure, small_lm
from zolab.optim import (
    Adam,
    Dense,
    Gaussian,
    Helene,
    InPlace,
    LayerMask,
    Momentum,
    Paired,
    RandomMask,
    Sign,
    SmallWeights,
    TwoSided,
    backend,
    engine,
    native,
)
from zolab.optim.backend import Limit, Term
from zolab.optim.bits import Places, pack_bits
from zolab.optim.moments import Look, Step
from zolab.optim.native import jobs

pytestmark = [needs_compiler, pytest.mark.usefixtures("_built")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UPDATES)
def test_bits_of_an_update(name: str, kind: str, dtype: torch.dtype) -> None:
    for size in (1, 37, 4099):
        weight = weights(size, dtype)
        check_update(name, kind, weight, lambda w, terms: native.sweep(kind, w, PID, terms))


@pytest.mark.parametrize("form", ["bytes", "bits", "places", "limit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["momentum", "adam", "helene", "sign"])
def test_bits_under_a_mask(name: str, dtype: torch.dtype, form: str) -> None:
    for kind, share in itertools.product(KINDS, (0.4, 0.03)):
        weight = weights(9001, dtype)
        mask = torch.rand(9001, generator=torch.Generator().manual_seed(1)) < share
        limit = Limit(float(weight[weight.isfinite()].abs().double().quantile(share)), True)
        held = {"bytes": mask, "bits": pack_bits(mask), "places": Places.of(mask)}.get(form)
        if form == "places" and held is None:
            continue
        options = {"limit": limit} if form == "limit" else {}
        check_update(
            name,
            kind,
            weight,
            lambda w, t, k=kind, h=held, o=options: native.sweep(k, w, PID, t, h, **o),
            limit if form == "limit" else mask,
        )


def test_threads_chunks_and_kept_noise_change_nothing(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "PARALLEL_FROM", 0)
    size = 5 * 2048 + 3
    for name, kind in itertools.product(("momentum", "adam", "helene"), KINDS):
        weight, mask = weights(size, torch.bfloat16), random_mask(size)
        z = {seed: Source(kind).z(PID, seed, 0, size, weight.device) for seed in (SEED, 5, 9)}
        for threads, chunk, kept in ((2, 2048, None), (3, 4096, z)):
            torch.set_num_threads(threads)
            monkeypatch.setattr("zolab.optim.directions.CHUNK", chunk)
            check_update(
                name,
                kind,
                weight,
                lambda w, t, k=kind, m=mask, z=kept: native.sweep(k, w, PID, t, m, kept=z),
                mask,
            )


def test_a_new_mask_after_an_update() -> None:
    for kind, dtype in itertools.product(KINDS, DTYPES):
        size, limit, on = 9001, Limit(0.01, True), Term(2e-3, 7)
        weight, old = weights(size, dtype), random_mask(size)
        expected, direction = weight.clone(), Gaussian(kind) if kind != "rademacher" else None
        terms, wanted = update("helene", weight)
        with specification():
            backend.sweep_(expected, PID, terms, Source(kind), old)
            backend.sweep_(expected, PID, [on], Source(kind), limit.of(expected))
        terms, moved = update("helene", weight)
        if direction is not None:
            backend.resweep_(weight, PID, terms, [on], limit, pack_bits(old), direction)
        else:
            native.sweep(
                kind, weight, PID, [*terms, on], old.clone(), limit=limit, split=len(terms)
            )
        assert_same_bits(weight, expected)
        for moment, want in zip(moved, wanted, strict=True):
            assert_same_bits(moment, want)


@pytest.mark.parametrize("name", ["adam", "helene", "sign"])
def test_odd_moments_and_weights(name: str) -> None:
    tiny, large = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    odd = [0.0, -0.0, tiny, -tiny / 8, large, -large, float("inf"), -float("inf"), float("nan")]
    weight = torch.tensor(odd * 9)
    expected = weight.clone()
    for c in (0.0, 1e-30, 1e25, float("nan")):
        found = []
        for plain in (True, False):
            terms, kept = update(name, weight)
            (step,) = [term for term in terms if isinstance(term, Step)]
            for moment in kept:
                moment.copy_(torch.tensor(odd).repeat_interleave(9))
            looks = (Look(((c, SEED),), step.looks[0].first, step.looks[0].second),)
            step = Step(looks, step.then, step.first, step.second, step.divisor, step.sign)
            moved = expected.clone()
            if plain:
                with specification():
                    backend.sweep_(moved, PID, [step], Source("gauss"))
            else:
                native.sweep("gauss", moved, PID, [step])
            found.append([moved, *kept])
        for mine, theirs in zip(*found, strict=True):
            assert_same_bits(theirs, mine)


RULES = {
    "momentum": lambda: Momentum(0.9),
    "adam": lambda: Adam(form="transformers"),
    "adam_replayed": lambda: Adam(0.1, 0.2, history="replayed"),
    "helene": lambda: Helene(hessian_every=2, clip="quantile", clip_value=0.3, warmup_steps=2),
    "sign": lambda: Sign("element"),
}
MASKS = {
    "dense": Dense,
    "small": lambda: SmallWeights(0.6),
    "few": lambda: RandomMask(0.97),
    "layers": lambda: LayerMask(0.5),
}


@pytest.mark.parametrize(
    ("rule", "mask"),
    [
        *(("momentum", "dense"), ("momentum", "few"), ("momentum", "small"), ("sign", "few")),
        *(("adam", "small"), ("adam_replayed", "few"), ("helene", "small"), ("helene", "layers")),
    ],
)
def test_training_gives_the_bits_of_plain_torch(rule: str, mask: str, monkeypatch) -> None:
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)  # as for a large model: masks are bits

    def trained(placement) -> list[torch.Tensor]:
        model = small_lm()
        options = {"direction": Gaussian("gauss8"), "estimator": TwoSided(2), "weight_decay": 0.1}
        optimizer = make(
            model, rule=RULES[rule](), mask=MASKS[mask](), placement=placement(), **options
        )
        steps(optimizer, lm_closure(model), 3)
        kept = [t for key, t in sorted(optimizer.tensors().items()) if t.is_floating_point()]
        return [*(p.detach() for p in model.parameters()), *kept]

    for placement in (InPlace, Paired):
        found = trained(placement)
        with specification():
            expected = trained(placement)
        for mine, theirs in zip(found, expected, strict=True):
            assert_same_bits(mine, theirs)


def test_wide_weights_go_by_plain_torch_and_that_is_told_once(caplog) -> None:
    native._tell_of_steps_once.cache_clear()
    weight = weights(300, torch.float64)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            check_update(
                "adam",
                "gauss",
                weight,
                lambda w, terms: backend.sweep_(w, PID, terms, Gaussian()),
            )
    assert [record.message for record in caplog.records] == [
        "native kernels: updates of torch.float64 weights by moments go by plain torch"
    ]


def test_refuses_moments_it_must_not_touch() -> None:
    weight = weights(64, torch.float32)
    terms, _ = update("momentum", weights(63, torch.float32))
    with pytest.raises(ValueError, match=r"moment: \(63,\).*with 64 elements"):
        native.sweep("gauss", weight, PID, terms)
    wide, _ = update("momentum", weights(64, torch.float64))
    with pytest.raises(ValueError, match=r"moment: .*float64"):
        native.sweep("gauss", weight, PID, wide)
    with pytest.raises(ValueError, match="steps with moments are for 32 and 16 bits"):
        native.sweep("gauss", weight.double(), PID, wide)
