"""When Triton is chosen, what it falls back on, and that it compiles for a GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from tests.optim.native.parts import assert_same_bits
from tests.optim.small import Net, make, steps
from zolab.optim import (
    Adam,
    Gaussian,
    InPlace,
    Momentum,
    Paired,
    Sgd,
    SmallWeights,
    engine,
    fast,
    triton,
)

pytest.importorskip("triton", reason="there is no Triton for this platform")
from zolab.optim.triton import check, launch


@pytest.fixture(autouse=True)
def _chosen(monkeypatch):
    """CPU weights go by Triton's interpreter."""
    monkeypatch.setenv("ZOLAB_TRITON", "1")


@pytest.fixture
def _afresh():
    """What was found out about the kernels is forgotten, before and after."""
    for found in (triton._ready, triton._tell_once):
        found.cache_clear()
    yield
    for found in (triton._ready, triton._tell_once):
        found.cache_clear()


def trained(**parts) -> torch.Tensor:
    net, x = Net(), torch.linspace(-1, 1, 20).view(4, 5)

    def closure(copies: int = 1) -> list[float]:
        with torch.no_grad():
            return [float(half.square().mean()) for half in net(x.repeat(copies, 1)).chunk(copies)]

    steps(make(net, direction=Gaussian("gauss8"), **parts), closure, 3)
    return torch.cat([p.detach().view(-1) for p in net.parameters()])


@pytest.mark.parametrize(
    ("placement", "sparsity", "rule"),
    [
        *((InPlace, 0.0, Sgd), (InPlace, 0.5, Sgd), (InPlace, 0.5, Momentum)),
        *((Paired, 0.0, Sgd), (Paired, 0.5, Sgd), (Paired, 0.0, Adam)),
    ],
)
def test_training_gives_the_bits_of_plain_torch(placement, sparsity, rule, monkeypatch) -> None:
    monkeypatch.setattr(engine, "KEEP_BYTES", 0)  # as for a large model: masks are bits
    mask, launches = SmallWeights(sparsity, vectors="masked"), []
    run = launch.Sweep.launch

    def counted(self: launch.Sweep) -> None:
        launches.append(self._kernel)
        run(self)

    assert fast.name("gauss8", torch.empty(0)) == "triton"
    assert fast.handles("gauss8", torch.empty(0), state=True)  # compared now, not while counting
    monkeypatch.setattr(launch.Sweep, "launch", counted)
    found = trained(placement=placement(), mask=mask, rule=rule())
    sweeps = [kernel for kernel in launches if kernel is launch.kernels.sweep]
    # In place two sweeps a step over all parameters, and one to settle; paired one a step.
    assert len(sweeps) == (7 if placement is InPlace else 3)
    monkeypatch.setenv("ZOLAB_TRITON", "0")
    monkeypatch.setenv("ZOLAB_NATIVE", "0")
    assert fast.name("gauss8", torch.empty(0)) == "torch"
    assert_same_bits(found, trained(placement=placement(), mask=mask, rule=rule()))


@pytest.mark.usefixtures("_afresh")
def test_kernels_that_fail_or_err_are_told_once_and_not_used(monkeypatch, caplog) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no ptxas here\nand a long trace")

    want = torch.empty(300)
    weight = torch.linspace(-1, 1, 300)
    Gaussian("gauss8").noise.fill(want, 1, 2)
    broken = (
        (check, "check", fail, "no ptxas here"),
        (triton, "rows", lambda *_: torch.zeros(2, 131), "rows of gauss8 in torch.float32 differ"),
    )
    for where, name, other, said in broken:
        triton._ready.cache_clear()
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(where, name, other)
            assert not fast.handles("gauss8", weight)
            assert not fast.handles("gauss8", weight)
            found = torch.empty(300)
            Gaussian("gauss8").noise.fill(found, 1, 2)
        assert_same_bits(found, want)
        assert [said in record.message for record in caplog.records] == [True]


@pytest.mark.usefixtures("_afresh")
def test_what_it_is_not_for(monkeypatch, caplog) -> None:
    wide = torch.zeros(4, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        assert not triton.handles("gauss", wide)
        assert not triton.handles("gauss", wide)
    assert [record.message for record in caplog.records] == [
        "triton kernels: sweeps over torch.float64 weights go by plain torch"
    ]
    assert not triton.handles("cauchy", torch.zeros(4))
    assert not triton.handles("gauss", torch.zeros(4, 4).t())
    monkeypatch.delenv("ZOLAB_TRITON")
    assert not triton.takes(torch.device("cpu"))
    assert triton.takes(torch.device("cuda"))
    monkeypatch.setattr(triton, "_installed", lambda: False)
    assert not triton.takes(torch.device("cuda"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert not triton.handles("gauss", torch.zeros(4))
    assert "there is no Triton here" in caplog.text


COMPILED = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zolab.optim.triton import kernels
from zolab.optim.triton.launch import BLOCK, _OPTIONS

TABLES = {"table": "*i64", "rows": "i32", "terms": "*i32", "levels": "*fp32"}
SPREAD = {"out": "*fp32", "index": "*i64", "told": "*i64", "levels": "*fp32"}
for kernel, given, constants in (
    (kernels.sweep, TABLES, {"KIND": 0, "DTYPE": 2, "ALIGNED": True, "STEPS": False}),
    (kernels.sweep, TABLES, {"KIND": 1, "DTYPE": 1, "ALIGNED": True, "STEPS": True}),
    (kernels.pair, TABLES, {"KIND": 1, "DTYPE": 1, "ALIGNED": True}),
    (kernels.spread, SPREAD, {"KIND": 2}),
):
    constants["BLOCK"] = BLOCK
    signature = given | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=_OPTIONS)
    ptx = made.asm["ptx"]
    assert not re.search(r"\\bfma\\.|\\bcall\\b|\\.ftz", ptx), "bits of another arithmetic"
    assert made.asm["cubin"]
    if given is TABLES:
        assert "ld.global.v4" in ptx and "st.global.v4" in ptx, "no reads and writes in vectors"
print("compiled")
"""


def test_the_kernels_compile_for_a_gpu_without_fused_sums(tmp_path) -> None:
    # The interpreter takes more than the compiler does. No GPU is needed for this.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.endswith("compiled\n"), done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bits_on_a_gpu_are_those_of_the_cpu(tmp_path) -> None:
    code = (
        "import torch\n"
        "from zolab.optim.triton.check import check, check_steps\n"
        "for kind in ('gauss', 'gauss8', 'rademacher'):\n"
        "    for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
        "        check(kind, dtype, torch.device('cuda'))\n"
        "        check_steps(kind, dtype, torch.device('cuda'))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("placement", [InPlace, Paired])
def test_coefficients_are_taken_from_the_device_where_they_are_late(placement, monkeypatch) -> None:
    from tests.optim.test_late import trained as late_or_read
    from zolab.optim.late import Late

    options = {"dtype": torch.float32, "placement": placement(), "weight_decay": 0.1}
    monkeypatch.setattr(Late, "__float__", lambda self: pytest.fail("the host waited"))
    found, expected = (
        late_or_read(late, **options, mask=SmallWeights(0.5, vectors="masked"))
        for late in (True, False)
    )
    assert found[1] == expected[1]
    assert fast.name("gauss8", found[0][0]) == "triton"
    assert_same_bits(*(torch.cat([p.view(-1) for p in ps]) for ps, _ in (found, expected)))
