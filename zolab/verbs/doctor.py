"""`zolab doctor`: what one wants to know of a cell before spending a night on it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zolab import compose, costs
from zolab.config.contents import stored_shape
from zolab.costs.speed import Speed, write_speed
from zolab.errors import UserError
from zolab.verbs.common import cell_parser, overrides_of

_GIB = float(1 << 30)
#: More cut prompts than this share are worth a word.
TRUNCATED_SHARE = 0.05


@dataclass
class Report:
    """What was found; a problem means that the cell should not be run as it is."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line at once: what follows may take a while."""
        self.lines.append(line)
        print(line, flush=True)


def doctor(arguments: Sequence[str]) -> int:
    """Look a cell over, step by step; 0: ready, 1: not, with the reasons at the end.

    Nothing is left behind but the measured speed, which `zolab plan` reads.
    """
    description = "Prompt, tokens, batches, memory, self-check and one timed step of a cell."
    parser = cell_parser("doctor", description, "as for a run")
    overrides = overrides_of(parser.parse_args(list(arguments)))
    with compose.told():
        composed = compose.compose(compose.prepare_overrides(overrides))
    cell = compose.check(composed)
    report = Report()
    report.say(
        f"{cell['optimizer'].get('name', '')} with {cell['model']['name']} on "
        f"{cell['task']['name']}, run id {compose.run_id(cell)}"
    )
    if composed["grid"]:
        report.say(
            "grid: this is the cell that its values are set on, and the only one looked at; "
            "`zolab plan` lists the cells, and their KEY=VALUE given here choose one"
        )
    try:
        examine(cell, report)
    except UserError as error:
        report.problems.append(str(error))
    for word in report.warnings:
        report.say(f"warning: {word}")
    for problem in report.problems:
        report.say(f"problem: {problem}")
    report.say("verdict: " + ("not ready" if report.problems else "ready"))
    return 1 if report.problems else 0


def examine(cell: dict[str, Any], report: Report) -> None:
    """All looks in turn; those that need the model only if it fits.

    Raises:
        UserError: the cell cannot be built.
    """
    from zolab.prepare import task_of

    task = task_of(cell)
    examples = task.load()
    report.say("rows: " + ", ".join(f"{len(rows)} {name}" for name, rows in examples.items()))
    _look_at_disk(cell, report)
    if not _look_at_memory(cell, report):
        return
    from zolab.begin import build_learner
    from zolab.offloading import Work
    from zolab.origin import load_origin, trainable_share
    from zolab.prepare import study_of

    with tempfile.TemporaryDirectory(prefix="zolab-doctor-") as name:
        folder = Path(name)
        work = Work(cell, folder, "doctor")
        loaded = load_origin(folder, cell, work)
        share = trainable_share(loaded)
        report.say(
            f"weights: {share['num_parameters']:,}, of which {share['num_trained']:,} train "
            f"({share['tuning']})"
        )
        learner = build_learner(cell, loaded, work)
        study = study_of(cell, task, examples, loaded, learner.prompts)
        _look_at_prompt(study, report)
        _look_at_batches(cell, study, report)
        _take_steps(cell, learner, study, share["num_parameters"], report)


def _look_at_disk(cell: dict[str, Any], report: Report) -> None:
    above = _existing(Path(cell["run_root"]))
    free = shutil.disk_usage(above).free
    shape = _shape(cell)
    need = costs.disk_of(cell, shape, costs.tokens_of(cell)[0])[0] if shape else 0
    report.say(f"disk: {free / 1e9:.1f} GB free in {above}, about {need / 1e9:.2f} GB needed")
    if need > free:
        report.problems.append(
            f"run_root = {cell['run_root']!r}: {free / 1e9:.1f} GB are free and a run takes about "
            f"{need / 1e9:.1f} GB"
        )


def _look_at_memory(cell: dict[str, Any], report: Report) -> bool:
    """Whether the cell's own placement fits, or nothing is known against it."""
    from zolab.models.load import pick_device

    shape = _shape(cell)
    if shape is None:
        report.say("memory: the model's shape is not known before it is loaded")
        return True
    device = pick_device(cell["model"]["device"])
    available, host = available_bytes(device), available_bytes(None)
    tokens = costs.tokens_of(cell)[0]
    own = costs.memory_of(cell, shape, tokens)
    report.say(f"memory, estimated: {_gib(own.total)} of {_gib(available)} on {device}")
    for name, need in _by_placement(cell, shape, tokens):
        fits = need.total <= available and need.host <= host
        extra = f" and {_gib(need.host)} of CPU memory" if need.host else ""
        report.say(f"  {name:<10} {_gib(need.total)}{extra}: {'fits' if fits else 'too large'}")
    if not _look_at_offload(cell, device, report):
        return False
    if own.total <= available and own.host <= host:
        return True
    report.problems.append(
        f"memory: about {_gib(own.total)} are needed on {device} and {_gib(available)} are free; "
        "a smaller train.batch_size, train.micro_batch_size or train.eval_batch_size, a 16-bit "
        "model.dtype or optimizer/placement=offload needs less"
    )
    return False


def _by_placement(
    cell: dict[str, Any], shape: costs.Shape, tokens: int
) -> Iterator[tuple[str, costs.Need]]:
    if "placement" not in cell["optimizer"]:
        return
    for name, target in (("in_place", "InPlace"), ("paired", "Paired"), ("offload", "Offload")):
        other = {**cell["optimizer"], "placement": {"_target_": f"zolab.optim.{target}"}}
        yield name, costs.memory_of({**cell, "optimizer": other}, shape, tokens)


def _look_at_offload(cell: dict[str, Any], device: Any, report: Report) -> bool:
    """Which block `optimizer/placement=offload` would put where here; False if the cell needs it
    and it cannot be done."""
    if "placement" not in cell["optimizer"]:
        return True
    from zolab.models.load import model_source
    from zolab.models.shapes import model_shape
    from zolab.offloading import TARGET, plan_shape
    from zolab.optim.offload import PlanError

    model, placement = cell["model"], cell["optimizer"]["placement"]
    streams = placement["_target_"] == TARGET
    chosen = {key: placement[key] for key in ("tier", "slots") if streams}
    work = Path(placement["folder"] if streams and placement["folder"] else cell["run_root"])
    shape = model_shape(model_source(model["path"], model["init"]), model)
    try:
        plan = plan_shape(
            shape, model["kind"], model["dtype"], str(device), _existing(work), **chosen
        )
    except PlanError as error:
        if streams:
            report.problems.append(f"optimizer/placement=offload: {error}")
        else:
            report.say(f"  offload plan: {error}")
        return not streams
    for line in plan.lines():
        report.say(f"  offload plan: {line}")
    return True


def _existing(path: Path) -> Path:
    """The folder, or the first one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def available_bytes(device: Any) -> int:
    """Memory that is free on a device; None or a CPU: of the host."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))


def _shape(cell: dict[str, Any]) -> costs.Shape | None:
    model = cell["model"]
    stored = model.get("shape") or stored_shape(model)
    return costs.shape_of({**stored, **model["config"]}) if stored else None


def _look_at_prompt(study: Any, report: Report) -> None:
    """The first training row as the model reads it, and the tokens of its candidates."""
    tokenizer, encoded = study.encoder.tokenizer, study.splits["train"][0]
    report.say("prompt of the first row, special tokens shown:")
    report.say("  " + repr(tokenizer.decode(encoded.rows[0])))
    for index, candidate in enumerate(encoded.candidates):
        pieces = tokenizer.convert_ids_to_tokens(list(candidate.targets))
        mark = "  (right)" if index == encoded.label else ""
        report.say(f"  candidate {index}: {' '.join(map(repr, pieces))}{mark}")
    for name, rows in study.splits.items():
        cut = sum(e.truncated for e in rows)
        longest = max(e.length for e in rows)
        report.say(f"{name}: longest row {longest} tokens, {cut / len(rows):.1%} of rows cut")
        if cut > TRUNCATED_SHARE * len(rows):
            report.warnings.append(
                f"{cut} of {len(rows)} {name} rows are longer than {study.limit} tokens and lose "
                "their beginning (task.max_length)"
            )


def _look_at_batches(cell: dict[str, Any], study: Any, report: Report) -> None:
    shapes = []
    for step in (1, 2, 3):
        shapes.append("x".join(map(str, _batch(cell, study, step).input_ids.shape)))
    report.say(f"batches (rows x tokens): {', '.join(shapes)}, ...")


def _batch(cell: dict[str, Any], study: Any, step: int) -> Any:
    from zolab.data import BatchOrder
    from zolab.objectives import PAD_UNIT

    train = study.splits["train"]
    units = [-(-e.length // PAD_UNIT) for e in train]
    chosen = BatchOrder(units, cell["train"]["batch_size"], cell["seed"]).batch(step)
    size = cell["train"]["micro_batch_size"] or len(chosen)
    return study.scorer.batch([train[i] for i in chosen[:size]], trains=True)


def _kernels(optimizer: Any) -> str:
    """Backends of an optimizer's sweeps: "cpp", "triton", "torch" (plain, always there)."""
    from zolab.optim import fast

    engine = optimizer.engine
    return ", ".join(
        sorted({fast.name(engine.source.kind, info.data) for info in engine.infos}),
    )


def _take_steps(
    cell: dict[str, Any], learner: Any, study: Any, parameters: int, report: Report
) -> None:
    """Self-check, one step to warm up and one that is timed; on copies of nothing: weights move."""
    from zolab.learner import ZerothOrderLearner
    from zolab.memory import EVALUATION, STEPS, PeakMemory
    from zolab.objectives import BatchLoss
    from zolab.optim.selfcheck import SelfCheckError, settle_placement

    batch = _batch(cell, study, 1)
    closure = BatchLoss(study.scorer, [batch], study.objective)
    memory = PeakMemory(study.scorer.model, study.scorer.device)
    if not learner.trains:
        begin = time.perf_counter()
        closure()
        seconds, forwards, kind = time.perf_counter() - begin, 1, EVALUATION
        losses = closure()
    else:
        if isinstance(learner, ZerothOrderLearner):
            asked = learner.optimizer.placement.name
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    settle_placement(learner.optimizer, closure)
            except SelfCheckError as error:
                raise UserError(f"optimizer/placement: {error}") from error
            report.say(f"self-check: placement {learner.optimizer.placement.name} works")
            report.say(f"sweeps over the weights: {_kernels(learner.optimizer)}")
            if learner.optimizer.placement.name != asked:
                report.warnings.append(str(told[-1].message) if told else f"{asked} cannot work")
        learner.step(closure)
        begin = time.perf_counter()
        losses = [learner.step(closure)]
        learner.flush()
        seconds, forwards, kind = time.perf_counter() - begin, learner.last.num_forwards, STEPS
    memory.lap(kind)
    tokens = batch.input_ids.numel() * forwards / seconds
    report.say(
        f"one step: {seconds:.3f} s, loss {losses[0]:.4f}, {tokens:,.0f} tokens/s of forward "
        f"passes, peak memory {_gib(memory.peak(kind) - memory.base)}"
    )
    if learner.trains:
        pieces = -(-cell["train"]["batch_size"] // batch.num_examples)
        hours = seconds * pieces * cell["train"]["steps"] / 3600
        report.say(f"training: about {hours:.2f} h for {cell['train']['steps']} steps")
    if not math.isfinite(losses[0]):
        report.problems.append(f"the loss after one step is {losses[0]}: lower optimizer.lr")
    device = _device_name(study.scorer.device)
    speed = Speed(device, cell["model"]["name"], tokens, tokens * 2 * parameters)
    write_speed(Path(cell["run_root"]), speed)


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _gib(value: float) -> str:
    return f"{value / _GIB:.2f} GiB"
