"""Updates by moments in the Triton kernels against plain torch, run by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.optim.native.parts import (
    KINDS,
    PID,
    Source,
    assert_same_bits,
    random_mask,
    specification,
    weights,
)
from tests.optim.native.updates import UPDATES, check_update, update
from zolab.optim import backend, triton
from zolab.optim.backend import Limit, Term
from zolab.optim.bits import pack_bits

pytest.importorskip("triton", reason="there is no Triton for this platform")
from zolab.optim.triton.launch import BLOCK, Job

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("number", "name"), list(enumerate(UPDATES)))
def test_bits_of_an_update(number: int, name: str) -> None:
    for kind, dtype in zip(KINDS, DTYPES[number % 3 :] + DTYPES[: number % 3], strict=True):
        weight = weights(BLOCK + 41, dtype)
        check_update(name, kind, weight, lambda w, t, k=kind: triton.sweep(k, w, PID, t))


@pytest.mark.parametrize("form", ["bytes", "bits", "limit"])
@pytest.mark.parametrize(
    ("name", "kind"), [("momentum", "gauss"), ("adam", "gauss8"), ("helene", "rademacher")]
)
def test_bits_under_a_mask(name: str, kind: str, form: str) -> None:
    weight, mask, limit = weights(300, torch.bfloat16), random_mask(300), Limit(0.01, True)
    held = {"bytes": mask, "bits": pack_bits(mask)}.get(form)
    given = limit if form == "limit" else None
    check_update(
        name,
        kind,
        weight,
        lambda w, t: triton.sweep(kind, w, PID, t, held, limit=given),
        given or mask,
    )


def test_parameters_of_one_launch_have_moments_of_their_own() -> None:
    jobs, wanted = [], []
    for size in (7, BLOCK + 1, 90):
        weight = weights(size + 1, torch.float32)[1:]
        terms, _ = update("adam", weight)
        expected = weight.clone()
        backend.sweep_(expected, PID, terms, Source("gauss8"))
        wanted.append((expected, terms[0].first, terms[0].second))
        jobs.append(Job(weight.clone(), PID, update("adam", weight)[0]))
    triton.sweep_many("gauss8", [*jobs, Job(torch.zeros(5), PID, [Term(1.0, 3)])])
    for job, (expected, m, v) in zip(jobs, wanted, strict=True):
        assert_same_bits(job.weight, expected)
        assert_same_bits(job.terms[0].first, m)
        assert_same_bits(job.terms[0].second, v)


def test_sweeps_that_wait_for_one_another_keep_their_moments_apart() -> None:
    weight = weights(50, torch.float32)
    terms, _ = update("momentum", weight)
    again, _ = update("helene", weight)
    expected = weight.clone()
    with specification():
        for part in (*update("momentum", weight)[:1], *update("helene", weight)[:1]):
            backend.sweep_(expected, PID, part, Source("gauss8"))
    with triton.together():
        triton.sweep("gauss8", weight, PID, terms)
        triton.sweep("gauss8", weight, PID, again)
    assert_same_bits(weight, expected)


def test_refuses_moments_it_must_not_touch() -> None:
    weight = weights(64, torch.float32)
    short, _ = update("momentum", weight[1:])
    with pytest.raises(ValueError, match=r"moment: \(63,\).*with 64 elements"):
        triton.sweep("gauss", weight, PID, short)
    several = [*update("momentum", weight)[0], *update("helene", weight)[0]]
    with pytest.raises(ValueError, match="2 steps with moments in a sweep: expected at most one"):
        triton.sweep("gauss", weight, PID, several)
