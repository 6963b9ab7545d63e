"""Settings that are each valid but do not go together: one small function and sentence each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from zolab.config.cross_tasks import TASK_CHECKS
from zolab.config.fields import AUTO
from zolab.config.forms import MASKED, protocol_of

Cell = dict[str, Any]


def _micro_batch(cell: Cell) -> str | None:
    micro, batch = cell["train"]["micro_batch_size"], cell["train"]["batch_size"]
    if micro is not None and micro > batch:
        return (
            f"train.micro_batch_size = {micro}: expected at most train.batch_size = {batch}, "
            "since a micro-batch is a piece of a batch"
        )
    return None


def _mask_needs_zeroth_order(cell: Cell) -> str | None:
    target, mask = cell["optimizer"]["_target_"], cell["sparsity"]
    if target.startswith("zolab.baselines.") and mask["_target_"] != "zolab.optim.Dense":
        return (
            f"sparsity = {mask.get('name', mask['_target_'])}: optimizer "
            f"{cell['optimizer']['name']} has no masked form; use sparsity=none with it"
        )
    return None


def _fused_backward(cell: Cell) -> str | None:
    if cell["optimizer"]["_target_"] not in ("zolab.baselines.LOMO", "zolab.baselines.AdaLOMO"):
        return None
    name, micro = cell["optimizer"]["name"], cell["train"]["micro_batch_size"]
    if micro not in (None, cell["train"]["batch_size"]):
        return (
            f"train.micro_batch_size = {micro}: optimizer {name} moves weights during backward and "
            "cannot add up gradients; leave it at null"
        )
    if cell["model"]["dtype"] == "float16":
        return (
            f"model.dtype = 'float16': optimizer {name} adds lr times the gradient to weights of "
            "that type, which loses most of it; use float32 or bfloat16"
        )
    return None


def _demonstrations(cell: Cell) -> str | None:
    if cell["optimizer"]["_target_"] == "zolab.baselines.ICL" and protocol_of(cell) == MASKED:
        return (
            "optimizer = icl: demonstrations stand before a text that a causal model goes on with; "
            "model.kind is masked"
        )
    return None


_LOW_RANK = ("zolab.optim.Subspace", "zolab.optim.LazyLowRank")
_WHOLE_TENSORS = ("zolab.optim.Dense", "zolab.optim.LayerMask")


def _target_of(cell: Cell, part: str) -> str:
    return cell["optimizer"].get(part, {}).get("_target_", "")


def _mask_name(cell: Cell) -> str:
    return cell["sparsity"].get("name", cell["sparsity"]["_target_"])


def _fixed_mask(cell: Cell) -> bool:
    """Whether the mask depends on neither the weights nor the step."""
    mask = cell["sparsity"]
    return mask["_target_"] == "zolab.optim.Dense" or mask.get("resample") == "run"


def _low_rank_and_mask(cell: Cell) -> str | None:
    direction, mask = _target_of(cell, "direction"), cell["sparsity"]
    whole = mask["_target_"] in _WHOLE_TENSORS or mask.get("sparsity") == 0
    if direction in _LOW_RANK and not whole:
        return (
            f"sparsity = {mask.get('name', mask['_target_'])}: optimizer.direction {direction} is "
            "low-rank, and cut to single weights it no longer is; use sparsity=layers or none"
        )
    return None


def _factor_momentum(cell: Cell) -> str | None:
    rule, direction = _target_of(cell, "rule"), _target_of(cell, "direction")
    if rule == "zolab.optim.FactorMomentum" and direction != "zolab.optim.LazyLowRank":
        return (
            f"optimizer.rule = {rule}: its momentum is kept on the left factor of U Vᵀ, so it "
            f"needs optimizer/direction=lazy_low_rank, not {direction}"
        )
    return None


def _forward_gradient(cell: Cell) -> str | None:
    placement = _target_of(cell, "placement")
    if cell["optimizer"]["_target_"] == "zolab.optim.ForwardGrad" and placement != AUTO:
        return (
            f"optimizer.placement = {placement}: forward-gradient perturbs no weight, it needs "
            "every weight and its tangent on the device for one pass; use optimizer/placement=auto"
        )
    return None


#: As `zolab.optim.rules.history`, which needs torch: a step counts until beta^window is below this.
NEGLIGIBLE = 1e-3


def _window(cell: Cell) -> str | None:
    rule = cell["optimizer"].get("rule", {})
    if rule.get("history") != "replayed":
        return None
    beta = max(rule.get(name, 0.0) for name in ("beta", "beta1", "beta2"))
    window = rule.get("window")
    needed = 1 if beta == 0.0 else math.ceil(math.log(NEGLIGIBLE) / math.log(beta))
    if window is not None and window < needed:
        return (
            f"optimizer.rule.window = {window}: moments with a decay of {beta:g} still count after "
            f"so few steps (beta^window = {beta**window:.2g}); expected at least {needed}, or null"
        )
    if _target_of(cell, "direction") in _LOW_RANK:
        return (
            "optimizer.rule.history = 'replayed': old directions of a low-rank "
            "optimizer.direction cannot be made anew from seeds; use history=stored"
        )
    if not _fixed_mask(cell):
        return (
            f"sparsity = {_mask_name(cell)}: optimizer.rule.history = 'replayed' does not know "
            "the masks of old steps; use history=stored, or sparsity=random or none"
        )
    return None


def _block_wise(cell: Cell) -> str | None:
    mask = cell["sparsity"]
    blocks = cell["optimizer"]["_target_"] == "zolab.optim.BlockWise"
    if blocks and mask["_target_"] != "zolab.optim.Dense" and mask.get("sparsity") != 0:
        return (
            f"sparsity = {_mask_name(cell)}: block-wise steps choose what moves themselves; use "
            "sparsity=none"
        )
    return None


def _conservative(cell: Cell) -> str | None:
    optimizer = cell["optimizer"]
    if optimizer["_target_"] != "zolab.optim.Conservative":
        return None
    estimator = optimizer["estimator"]
    if estimator.get("num_probes") != 1:
        return (
            f"optimizer.estimator = {estimator['_target_']}: ZO-SGD-Cons compares points along "
            "one direction; use two_sided or one_sided with num_probes=1"
        )
    direction = optimizer["direction"]
    if direction.get("scale_by_rank"):
        return (
            "optimizer.direction.scale_by_rank = True: ZO-SGD-Cons compares points where its "
            "update would go, and a scaled estimate goes elsewhere; use scale_by_rank=false"
        )
    return None


def _schedule(cell: Cell) -> str | None:
    estimator = cell["optimizer"].get("estimator", {})
    needs = {"linear": "num_steps", "power": "epoch_steps"}.get(estimator.get("schedule"))
    if needs and estimator.get(needs) is None:
        return (
            f"optimizer.estimator.{needs} = None: expected a whole number >= 1, since "
            f"optimizer.estimator.schedule = {estimator['schedule']!r} counts in it"
        )
    return None


def _quantile(cell: Cell) -> str | None:
    rule = cell["optimizer"].get("rule", {})
    if rule.get("clip") == "quantile" and rule["clip_value"] > 1:
        return f"optimizer.rule.clip_value = {rule['clip_value']}: a quantile is at most 1"
    return None


def _svrg(cell: Cell) -> str | None:
    if cell["optimizer"]["_target_"] != "zolab.optim.MeZOSVRG":
        return None
    direction = _target_of(cell, "direction")
    if not _fixed_mask(cell):
        return (
            f"sparsity = {_mask_name(cell)}: MeZO-SVRG compares two points on "
            "the same coordinates, so its mask may not change; use sparsity=random or none"
        )
    if direction in _LOW_RANK:
        return (
            f"optimizer.direction = {direction}: MeZO-SVRG keeps the anchor's direction as a seed, "
            "which must mean the same many steps later; use gaussian or rademacher"
        )
    return None


#: Why a method needs all its weights where the parameters are.
_NEED_WEIGHTS = {
    "zolab.optim.BlockWise": "block-wise steps bind a placement to each block, and only one can "
    "move the weights",
    "zolab.optim.MeZOSVRG": "it holds a second copy of the weights, the anchor, and swaps the two",
}


def _offload(cell: Cell) -> str | None:
    if _target_of(cell, "placement") != "zolab.optim.Offload":
        return None
    optimizer, placement = cell["optimizer"], cell["optimizer"]["placement"]
    reason = _NEED_WEIGHTS.get(optimizer["_target_"])
    if reason:
        return f"optimizer/placement = offload with optimizer {optimizer['name']}: {reason}"
    if cell["model"].get("device_map"):
        return (
            f"model.device_map = {cell['model']['device_map']!r}: with optimizer/placement=offload "
            "the placement decides where layers lie; leave it at null"
        )
    rule = optimizer.get("rule", {})
    stored = rule.get("history") == "stored" or rule.get("_target_") == "zolab.optim.Helene"
    if stored and "disk" in placement["tier"]:
        return (
            f"optimizer.placement.tier = {placement['tier']!r}: {rule['_target_']} keeps numbers "
            "for every weight in memory, so its layers cannot be on disk; use tier=cpu"
            + (" or optimizer.rule.history=replayed" if "history" in rule else "")
        )
    return None


#: Tuning modes that move something in or before the lowest layer.
_WHOLE = ("full", "bitfit", "prefix", "prompt")


def _keep_lower(cell: Cell) -> str | None:
    limit, kind = cell["train"]["keep_lower_gb"], cell["model"]["tuning"]["kind"]
    if not limit:
        return None
    begin = f"train.keep_lower_gb = {limit:g}: "
    if kind in _WHOLE:
        return begin + (
            f"model.tuning.kind = {kind!r} trains the lowest layer too, so nothing stands still "
            "below; use head, or lora or tensor_train with targets in upper layers"
        )
    target = cell["optimizer"]["_target_"]
    if target.startswith("zolab.baselines.") or target == "zolab.optim.ForwardGrad":
        return begin + (
            f"optimizer {cell['optimizer']['name']} needs derivatives or takes no step, and what "
            "is kept has none; leave it at 0"
        )
    if _target_of(cell, "placement") == "zolab.optim.Offload":
        return begin + "under placement offload every layer comes and goes; leave it at 0"
    return None


def _capture(cell: Cell) -> str | None:
    if not cell["train"]["capture"]:
        return None
    begin, optimizer = "train.capture = true: ", cell["optimizer"]
    target, placement = optimizer["_target_"], _target_of(cell, "placement")
    if target.startswith("zolab.baselines.") or target == "zolab.optim.ForwardGrad":
        return begin + f"optimizer {optimizer['name']} has no forwards to record; set it to false"
    if placement not in (AUTO, "zolab.optim.InPlace"):
        return begin + (
            f"placement {placement} makes weights within each forward, from seeds a graph would "
            "freeze; use optimizer/placement=in_place"
        )
    if cell["train"]["objective"] == "f1":
        return begin + "train.objective = 'f1' generates, which the host steers; set it to false"
    return None


def _online(cell: Cell) -> str | None:
    tracking = cell["tracking"]
    if tracking["mode"] == "online" and not tracking["wandb"]:
        return "tracking.mode = 'online': tracking.wandb is false, so nothing would go online"
    return None


def _grid(cell: Cell) -> str | None:
    for number, block in enumerate(cell["grid"] or []):
        if not isinstance(block, dict) or not block:
            return f"grid[{number}] = {block!r}: expected a mapping from override to value or list"
    return None


#: Each returns a sentence naming key, value and what is allowed, or None if all is well.
CROSS_CHECKS: tuple[Callable[[Cell], str | None], ...] = (
    _micro_batch,
    _mask_needs_zeroth_order,
    _fused_backward,
    _demonstrations,
    _low_rank_and_mask,
    _factor_momentum,
    _forward_gradient,
    _window,
    _block_wise,
    _conservative,
    _schedule,
    _quantile,
    _svrg,
    _offload,
    _keep_lower,
    _capture,
    *TASK_CHECKS,
    _online,
    _grid,
)
