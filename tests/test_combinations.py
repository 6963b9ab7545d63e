"""Settings that do not go together are refused when a configuration is checked, with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from zolab import cli, compose
from zolab.config.check import check_tree
from zolab.config.cross import NEGLIGIBLE
from zolab.errors import UserError
from zolab.optim.rules import history

REPLAYED = "optimizer=mezo_adam_replayed"
REFUSED = [
    (["optimizer=subzero", "sparsity=random"], "low-rank, and cut to single weights"),
    (["optimizer=lozo", "sparsity=small_weights"], "use sparsity=layers or none"),
    (["optimizer=mezo", "optimizer/rule=factor_momentum"], "direction=lazy_low_rank"),
    (["optimizer=mezo_svrg", "sparsity=layers"], "its mask may not change"),
    (["optimizer=mezo_svrg", "optimizer/direction=subspace"], "keeps the anchor's direction"),
    (["optimizer=forward_grad", "optimizer/placement=in_place"], "perturbs no weight"),
    (["optimizer=forward_grad", "optimizer/placement=paired"], "its tangent on the device"),
    (["optimizer=forward_grad", "optimizer/placement=offload"], "Offload: forward-gradient"),
    ([REPLAYED, "optimizer.rule.window=3"], r"window = 3: .*expected at least 135, or null"),
    (
        ["optimizer=mezo_momentum_replayed", "optimizer.rule.window=65"],
        r"a decay of 0.9 still count .*expected at least 66",
    ),
    ([REPLAYED, "optimizer/direction=subspace"], "cannot be made anew from seeds"),
    ([REPLAYED, "sparsity=small_weights"], "the masks of old steps"),
    (["optimizer=zo_block_wise", "sparsity=random"], "block-wise steps choose what moves"),
    (["optimizer=zo_conservative", "optimizer.estimator.num_probes=2"], "along one direction"),
    (["optimizer=zo_conservative", "optimizer/estimator=one_point"], "along one direction"),
    (["optimizer=zo_conservative", "optimizer/direction=lazy_low_rank"], "scale_by_rank=false"),
    (["optimizer.estimator.schedule=linear"], "num_steps = None: expected a whole number"),
    (["optimizer.estimator.schedule=power"], "epoch_steps = None: expected a whole number"),
    (
        ["optimizer=helene_reconstructed", "optimizer.rule.clip=quantile",
         "optimizer.rule.clip_value=2"],
        "a quantile is at most 1",
    ),
]  # fmt: skip
ACCEPTED = [
    ["optimizer=lozo", "sparsity=layers"],
    ["optimizer=subzero", "sparsity=random", "sparsity.sparsity=0"],
    ["optimizer=mezo_svrg", "sparsity=random"],
    [REPLAYED, "optimizer.rule.window=135"],
    ["optimizer=mezo_momentum_replayed", "sparsity=random"],
    ["optimizer=zo_conservative", "optimizer/direction=lazy_low_rank",
     "optimizer.direction.scale_by_rank=false"],
    ["optimizer=zo_block_wise", "sparsity=random", "sparsity.sparsity=0"],
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda x: " ".join(x)[:60])
def test_refused_with_the_reason(overrides, message: str) -> None:
    tree = compose.resolve(compose.compose(compose.prepare_overrides(overrides)))
    with pytest.raises(UserError, match=message) as caught:
        check_tree(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", ACCEPTED, ids=" ".join)
def test_what_goes_together_is_checked_and_built(overrides) -> None:
    from tests.optim.tiny import small_lm

    cell = compose.check(compose.compose(compose.prepare_overrides(overrides)))
    model = small_lm()
    mask = compose.build(cell["sparsity"])
    compose.build(cell["optimizer"], model.named_parameters(), mask=mask, model=model, seed=0)


def test_the_window_is_counted_as_the_rule_counts_it() -> None:
    assert history.NEGLIGIBLE == NEGLIGIBLE
    for beta in (0.3, 0.9, 0.95, 0.999):
        needed = math.ceil(math.log(NEGLIGIBLE) / math.log(beta))
        assert history.History(needed, beta).window == needed == history.History(None, beta).window
        with pytest.raises(ValueError, match=f"needs at least {needed}"):
            history.History(needed - 1, beta)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=subzero", "sparsity=random"],
        [REPLAYED, "optimizer.rule.window=3"],
        ["optimizer=forward_grad", "optimizer/placement=per_layer"],
        ["-m", "optimizer=mezo,lozo", "sparsity=small_weights"],
    ],
)
def test_the_command_says_so_and_writes_nothing(overrides, tmp_path: Path, capsys) -> None:
    root = tmp_path / "runs"
    assert cli.main([*overrides, f"run_root={root}"]) not in (0, None)
    error = capsys.readouterr().err
    assert "use " in error or "expected" in error
    assert not root.exists()
