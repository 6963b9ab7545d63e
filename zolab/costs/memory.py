"""Memory of a cell, from its config: weights, state, gradients, activations, scratch.

The parts are those that `zolab bench memory` compares with measurements and that
docs/methods.md and docs/references.md declare; activations are of attention that keeps no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from zolab.costs.shapes import Shape

Cell = Mapping[str, Any]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Largest piece of a tensor that `paired` perturbs at once, in weights.
CHUNK = 1 << 22
#: Answers are a few tokens; each is scored over the whole vocabulary in float32, twice.
_SCORED = 4


@dataclass(frozen=True)
class Need:
    """Bytes on the device, and in the memory of the host where weights lie there.

    Attributes:
        weights: as loaded, or what of them is on the device at a time.
        state: kept between steps.
        gradients: alive at once.
        activations: of the larger of a step and an evaluation.
        scratch: perturbed copies of one layer, masks.
        host: weights and state in CPU memory under offload.
    """

    weights: int
    state: int = 0
    gradients: int = 0
    activations: int = 0
    scratch: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All on the device."""
        return self.weights + self.state + self.gradients + self.activations + self.scratch


def memory_of(cell: Cell, shape: Shape, tokens: int, context: int | None = None) -> Need:
    """What a cell will need at its peak.

    Args:
        cell: checked config.
        shape: of its model.
        tokens: of a row, on average.
        context: longest row of an evaluation; None: as `tokens`.
    """
    size = BYTES[cell["model"]["dtype"]]
    method = method_of(cell)
    trained = 0 if is_untrained(cell) else trained_weights(cell, shape)
    train, optimizer = cell["train"], cell["optimizer"]
    rows = train["micro_batch_size"] or train["batch_size"]
    product = BYTES.get(cell["model"]["autocast"], size)
    looked_at = forward_bytes(shape, train["eval_batch_size"], context or tokens, product)
    weights = shape.parameters * size
    if is_untrained(cell):
        return Need(weights, activations=looked_at)
    if is_first_order(cell):
        state, gradients = _FIRST_ORDER.get(method, _adam)(optimizer, shape, trained)
        backward = backward_bytes(shape, rows, tokens, product)
        return Need(weights, state * size, gradients * size, max(backward, looked_at))
    state = _zeroth_order_state(cell, shape, trained, size) + int(1e9 * train["keep_lower_gb"])
    forward = forward_bytes(shape, rows, tokens, product)
    if method == "ForwardGrad":
        return Need(weights, state, trained * size, max(2 * forward, looked_at))
    placement = placement_of(cell)
    if placement == "in_place":
        masked = cell["sparsity"]["_target_"] != "zolab.optim.Dense"
        bits = trained // 8 if masked else 0
        return Need(weights, state + bits, 0, max(forward, looked_at))
    scratch = 2 * min(shape.largest, CHUNK) * size
    both = forward if placement == "per_layer" else 2 * forward
    if placement == "offload":
        slots = optimizer["placement"].get("slots", 3)
        resident = (shape.outside + min(slots, shape.layers) * shape.block) * size
        return Need(resident, 0, 0, max(both, looked_at), scratch, host=weights + state)
    return Need(weights, state, 0, max(both, looked_at), scratch)


def method_of(cell: Cell) -> str:
    """Last part of the optimizer's target, such as "ZeroOrder"."""
    return cell["optimizer"]["_target_"].rpartition(".")[2]


def is_untrained(cell: Cell) -> bool:
    """Whether a cell takes no step."""
    return method_of(cell) in ("ZeroShot", "ICL", "LinearProbing")


def is_first_order(cell: Cell) -> bool:
    """Whether a cell trains by back-propagation."""
    return ".baselines." in cell["optimizer"]["_target_"] and not is_untrained(cell)


def placement_of(cell: Cell) -> str:
    """The placement a cell asks for; `auto` as the optimizer would decide it."""
    target = cell["optimizer"].get("placement", {}).get("_target_", "auto").rpartition(".")[2]
    known = {"InPlace": "in_place", "Paired": "paired", "PerLayer": "per_layer"}
    if target != "auto":
        return known.get(target, target.lower())
    plain = cell["sparsity"]["_target_"] in ("zolab.optim.Dense", "zolab.optim.LayerMask")
    direction = cell["optimizer"].get("direction", {}).get("_target_")
    plain &= direction not in ("zolab.optim.LazyLowRank", "zolab.optim.Subspace")
    return "in_place" if plain and cell["model"]["dtype"] == "float32" else "paired"


def trained_weights(cell: Cell, shape: Shape) -> int:
    """How many weights train under the cell's tuning mode (of a tensor train: at most)."""
    tuning = cell["model"].get("tuning", {"kind": "full"})
    kind = tuning["kind"]
    if kind == "lora":
        width = 2 * shape.hidden + shape.hidden + shape.keys
        return shape.layers * tuning["r"] * width
    if kind == "prefix":
        return shape.layers * 2 * tuning["num_tokens"] * shape.keys
    if kind == "prompt":
        return tuning["num_tokens"] * shape.hidden
    if kind == "head":
        return shape.vocab * shape.hidden
    if kind == "bitfit":
        return shape.layers * shape.biases
    if kind == "tensor_train":
        return shape.layers * 64 * shape.hidden
    return shape.parameters


def forward_bytes(shape: Shape, rows: int, tokens: int, size: int) -> int:
    """Activations of one forward pass without a graph, and the logits that are scored."""
    wide = (3 if shape.gated else 2) * shape.ffn
    layer = max(6 * shape.hidden, 2 * shape.hidden + wide)
    return rows * (tokens * layer * size + _SCORED * shape.vocab * 8)


def backward_bytes(shape: Shape, rows: int, tokens: int, size: int) -> int:
    """Activations that back-propagation keeps of every layer."""
    layer = 8 * shape.hidden + (4 if shape.gated else 3) * shape.ffn
    return rows * (tokens * layer * shape.layers * size + _SCORED * shape.vocab * 8)


def _zeroth_order_state(cell: Cell, shape: Shape, trained: int, size: int) -> int:
    optimizer = cell["optimizer"]
    rule = optimizer.get("rule", {})
    name = rule.get("_target_", "").rpartition(".")[2]
    copies = {"Momentum": 1, "Adam": 2, "Helene": 2}.get(name, 0)
    kept = 0 if rule.get("replayed") or rule.get("store") == "replayed" else 4 * copies * trained
    if method_of(cell) == "MeZOSVRG":
        kept += trained * size
    direction = optimizer.get("direction", {})
    if "rank" in direction:
        sides = 2 if direction["_target_"].endswith("Subspace") or copies or "Factor" in name else 1
        kept += 4 * direction["rank"] * sides * shape.layers * 6 * shape.hidden
    return kept


def _adam(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    return 2 * trained, trained


def _sgd(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    return (trained if optimizer["momentum"] else 0), trained


def _lomo(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    return 0, max(shape.largest, shape.vocab * shape.hidden)


def _hift(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    turn = max(optimizer["group_size"] * shape.block, shape.outside)
    return 2 * turn, turn


def _low_rank(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    matrices = shape.layers * (6 * shape.hidden + 2 * shape.ffn)
    return 3 * optimizer["rank"] * matrices + 2 * shape.outside, trained


def _subset(optimizer: Mapping[str, Any], shape: Shape, trained: int) -> tuple[int, int]:
    return trained + shape.outside, trained


#: Class -> weights kept as state, weights whose gradients are alive at once.
_FIRST_ORDER: dict[str, Callable[[Mapping[str, Any], Shape, int], tuple[int, int]]] = {
    "SGD": _sgd,
    "LOMO": _lomo,
    "AdaLOMO": _lomo,
    "HiFT": _hift,
    "GaLore": _low_rank,
    "APOLLO": _low_rank,
    "AdamWSN": _subset,
}
