"""`zolab plan`: the cells of a grid, what is done, and what the rest will need."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zolab import costs
from zolab.config import check_tree
from zolab.config.contents import bytes_to_hash, stored_shape
from zolab.costs.speed import read_speed
from zolab.errors import UserError
from zolab.verbs.common import cell_parser, overrides_of

_GB, _GIB = 1e9, float(1 << 30)
#: A folder of weights larger than this is not hashed only to name its cells.
HASHED_BYTES = 2 << 30


@dataclass
class Row:
    """One cell of a plan; sizes in bytes, None where the model's shape is not known."""

    label: str
    state: str
    run_id: str | None
    why_no_id: str | None = None
    memory_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    kept_bytes: int | None = None
    forwards: float | None = None
    hours: float | None = None
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether something is left to run."""
        return self.state != "done"


def plan(arguments: Sequence[str]) -> int:
    """Compose a grid and list its cells; loads no model and asks no network."""
    options, overrides = _parse(arguments)
    tokens = int(options.tokens) if options.tokens else None
    rows = plan_rows(overrides, tokens, options.flops, options.tokens_per_second)
    if options.json:
        print(json.dumps({"cells": [asdict(row) for row in rows], **totals(rows)}, indent=1))
        return 0
    root = next((w.partition("=")[2] for w in overrides if w.startswith("run_root=")), "runs")
    source = _speed_source(Path(root), options.flops, options.tokens_per_second)
    for line in _lines(rows, source):
        print(line)
    return 0


def plan_rows(
    overrides: Sequence[str],
    tokens: int | None = None,
    flops: float | None = None,
    tokens_per_second: float | None = None,
) -> list[Row]:
    """The cells that some overrides stand for, with what each needs.

    Args:
        overrides: as on the command line, sweeps and experiments included.
        tokens: of a row; None: what is known of each task.
        flops: useful floating-point operations per second; None: measured here, or a stated figure.
        tokens_per_second: of one forward pass of the cells' model, in place of `flops`.

    Raises:
        UserError: the overrides or a cell are not valid.
    """
    from launchers.grid import cells_from
    from launchers.plan import make_plan

    store = _Store()
    from zolab.compose import looked_at_once

    with _offline(), looked_at_once():
        cells, labels = cells_from(overrides, store.check)
        found = make_plan(cells, labels=labels, store=store)
    rows = []
    for entry in found.entries:
        why = store.why(entry.cell)
        row = Row(
            entry.label or _title(entry.cell), entry.state, None if why else entry.run_id, why
        )
        _fill(row, entry.cell, tokens, flops, tokens_per_second)
        rows.append(row)
    return rows


class _Store:
    """Names cells as `zolab.compose` does, and those whose files are not here by themselves."""

    def __init__(self) -> None:
        self._whys: dict[int, str] = {}
        self._known: dict[str, str | None] = {}

    def check(self, config: Any) -> dict[str, Any]:
        """A valid cell, whether what lies behind its paths is here or not."""
        from zolab import compose

        tree = check_tree(compose.resolve(config))
        behind = json.dumps([tree["model"]["path"], tree["model"]["init"], _source(tree["task"])])
        why = self._known.get(behind)
        if why is None:
            try:
                return compose.look_behind(tree)
            except UserError as error:
                why = self._known[behind] = str(error)
        del tree["grid"]
        self._whys[id(tree)] = why
        return tree

    def why(self, cell: Mapping[str, Any]) -> str | None:
        """Why a cell has no id yet; None if it has one."""
        return self._whys.get(id(cell))

    def run_id(self, cell: Mapping[str, Any]) -> str:
        """Id of the cell, or a name that no run has."""
        from zolab import compose

        size = 0 if self.why(cell) else bytes_to_hash(cell)
        if size > HASHED_BYTES:
            self._whys[id(cell)] = f"{size / _GB:.0f} GB of weights are not hashed yet"
        if self.why(cell):
            text = json.dumps(compose.identity(cell), sort_keys=True)
            paths = json.dumps([cell["model"]["path"], _source(cell["task"])])
            return "?" + hashlib.sha256((text + paths).encode()).hexdigest()[:15]
        return compose.run_id(cell)

    def write_cell(self, cell: Mapping[str, Any]) -> Path:
        raise RuntimeError("a plan writes nothing")


def _source(task: Mapping[str, Any]) -> Any:
    return [task["path"], task.get("hub")]


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Take what the caches hold and ask nobody: a plan answers at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# --- what a cell needs ---------------------------------------------------------------------------


def _fill(
    row: Row,
    cell: Mapping[str, Any],
    tokens: int | None,
    flops: float | None,
    tokens_per_second: float | None,
) -> None:
    shape = costs.shape_of({**(_shape(cell["model"]) or {}), **cell["model"]["config"]})
    if shape is None:
        return
    tokens = tokens or costs.tokens_of(cell)[0]
    context = None
    if cell["optimizer"]["_target_"].endswith(".ICL"):
        context = min(shape.positions, tokens * (1 + cell["optimizer"]["num_demonstrations"]))
    need = costs.memory_of(cell, shape, tokens, context)
    row.memory_bytes, row.host_bytes = need.total, need.host
    row.parts = {name: value for name, value in asdict(need).items() if value}
    row.disk_bytes, row.kept_bytes = costs.disk_of(cell, shape, tokens)
    work = costs.work_of(cell, tokens)
    row.forwards = work.forwards
    rate = tokens_per_second
    if rate is None:
        speed = None if flops else read_speed(Path(cell["run_root"]))
        rate = (speed.flops if speed else flops or costs.DEFAULT_FLOPS) / (2 * shape.parameters)
    row.hours = work.hours(rate)


def _shape(model: Mapping[str, Any]) -> dict[str, Any] | None:
    if model.get("shape"):
        return dict(model["shape"])
    with contextlib.suppress(UserError):
        return stored_shape(dict(model))
    return None


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Sums over what is still to run."""
    todo = [row for row in rows if row.is_open]
    sized = [row for row in todo if row.memory_bytes is not None]
    return {
        "num_cells": len(rows),
        "num_done": len(rows) - len(todo),
        "num_unsized": len(todo) - len(sized),
        "hours": sum(row.hours for row in sized),
        "largest_memory_bytes": max((row.memory_bytes for row in sized), default=0),
        "kept_bytes": sum(row.kept_bytes for row in sized),
    }


# --- words ---------------------------------------------------------------------------------------


def _lines(rows: Sequence[Row], source: str) -> Iterator[str]:
    yield f"{'state':<10} {'run id':<16} {'GPU GB':>7} {'disk GB':>8} {'GPU-h':>8}  cell"
    for row in rows:
        memory = _size(row.memory_bytes, _GIB)
        yield (
            f"{row.state:<10} {row.run_id or '(not yet)':<16} {memory:>7} "
            f"{_size(row.disk_bytes, _GB):>8} {_hours(row.hours):>8}  {row.label}"
        )
    sums = totals(rows)
    states = Counter(row.state for row in rows)
    yield ""
    yield f"{len(rows)} cells: " + ", ".join(f"{n} {state}" for state, n in states.items())
    yield (
        f"to run: {_hours(sums['hours'])} GPU-hours, at most "
        f"{sums['largest_memory_bytes'] / _GIB:.1f} GiB of GPU memory a cell, "
        f"{sums['kept_bytes'] / _GB:.1f} GB kept on disk"
    )
    hosts = max((row.host_bytes or 0 for row in rows), default=0)
    if hosts:
        yield f"offloaded cells hold up to {hosts / _GIB:.0f} GiB in CPU memory"
    if sums["num_unsized"]:
        yield f"{sums['num_unsized']} cells have a model of unknown shape: give model.shape"
    for why, number in Counter(row.why_no_id for row in rows if row.why_no_id).items():
        yield f"no id yet for {number} cells: {why}"
    yield source


def _size(value: int | None, unit: float) -> str:
    return (
        "?" if value is None else f"{value / unit:.2f}" if value < unit else f"{value / unit:.1f}"
    )


def _hours(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}" if value < 1 else f"{value:,.1f}"


def _title(cell: Mapping[str, Any]) -> str:
    parts = [cell["optimizer"].get("name", ""), cell["model"]["name"], cell["task"]["name"]]
    return " ".join(parts) + f" seed={cell['seed']}"


def _speed_source(rows_root: Path, flops: float | None, rate: float | None) -> str:
    if rate:
        return f"hours at {rate:g} tokens/s of one forward pass, as given"
    if flops:
        return f"hours at {flops:g} useful FLOP/s, as given; 2 per weight and token"
    speed = read_speed(rows_root)
    if speed is not None:
        return (
            f"hours at {speed.flops:.3g} useful FLOP/s, measured with {speed.model} on "
            f"{speed.device} by `zolab doctor`"
        )
    return (
        f"hours at {costs.DEFAULT_FLOPS:g} useful FLOP/s ({costs.FLOPS_SOURCE}); `zolab doctor` "
        "measures this device's, --flops and --tokens-per-second state another"
    )


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = cell_parser(
        "plan",
        "List the cells of a grid with their state, memory, disk and GPU-hours.",
        "as for a run or sweep",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="understood without it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--tokens", type=_positive, help="tokens of a row, for every task")
    parser.add_argument("--flops", type=_positive, help="useful FLOP/s of the device")
    parser.add_argument("--tokens-per-second", type=_positive, help="of one forward pass")
    options = parser.parse_args(list(arguments))
    return options, overrides_of(options)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0")
    return value
