"""The command `zolab`: Hydra overrides run or sweep, a bare first word is a verb.

Nothing heavy is imported before it is known what to do, so that help answers at once and a login
node plans a sweep without torch. The one file that may import launchers and analysis.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zolab import __version__
from zolab.errors import UserError, nearest

USAGE_ERROR = 2
INTERRUPTED = 130

#: Options of Hydra that stand alone, and those that take a value.
_FLAGS = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--info")
_OPTIONS = (
    *("-c", "--cfg", "-p", "--package", "-cd", "--config-dir"),
    *("-cn", "--config-name", "-cp", "--config-path"),
)
#: What `--cfg` can show.
_SHOWN = ("job", "hydra", "all")

_HELP = """\
usage: zolab [KEY=VALUE ...]         run one cell, or go on with it
       zolab -m [KEY=V1,V2 ...]      run a grid of cells, skipping those that are done
       zolab VERB [ARGUMENTS]        see below; `zolab VERB --help` says more

With no arguments the embedded model is trained on the embedded task with MeZO.

verbs:
{verbs}

choices (GROUP=NAME):
{groups}

keys (KEY=VALUE), among others:
  run_root, seed, model.path, model.dtype, task.path, train.steps, train.batch_size,
  optimizer.lr, optimizer.eps, sparsity.sparsity (share frozen), sweep.dry_run, sweep.retry

options:
  -m, --multirun     run all combinations of the given values
  --cfg job          print the composed config and stop
  --config-dir DIR   a folder with further YAML files, such as DIR/task/mine.yaml
  --version          print the version and stop
  -h, --help         print this and stop

examples:
  zolab task=sst2 task.path=data/sst2 optimizer.lr=1e-4
  zolab -m optimizer=mezo,adamw sparsity=none seed=0,1,2
  zolab report runs --out report
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0: done. 1: a run or sweep failed, or the output did. 2: a mistake of the user, told
    in one line on stderr with nothing trained. 130: interrupted.

    Args:
        argv: arguments without the program name; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale without "±" must not cost a report.
        sys.stdout.reconfigure(errors="replace")
    try:
        status = _answer(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told that it fails
        return status
    except BrokenPipeError:
        # The reader of our output left (`zolab status | head`): nothing is wrong.
        _drop_output()
        return 0
    except OSError as error:
        if not _output_fails():
            raise
        _drop_output()
        print(f"zolab: standard output: {error.strerror}", file=sys.stderr)
        return 1


def _answer(arguments: list[str]) -> int:
    """The exit status of a command, with what it says on the streams."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("zolab: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        return _refuse(str(stop.code))


def _output_fails() -> bool:
    """Whether it is standard output that cannot be written, to a full device say."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Nothing more is written to standard output, at the end of the process neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    """Say in one line what is wrong."""
    print("zolab: " + " ".join(message.split()), file=sys.stderr)
    return USAGE_ERROR


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first and first[0] not in "-+~" and "=" not in first:
        if first not in VERBS:
            raise UserError(
                f"{first}: no such verb{nearest(first, VERBS)} (verbs: {', '.join(VERBS)}; "
                "settings are written KEY=VALUE)"
            )
        return VERBS[first][0](arguments[1:])
    if "-h" in arguments or "--help" in arguments:
        print(_help(), end="")
        return 0
    if "--version" in arguments:
        print(f"zolab {__version__}")
        return 0
    return _compose_and_run(arguments)


def _help() -> str:
    from zolab.config import CONF_DIR, GROUPS

    groups = {
        group: sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml")) for group in GROUPS
    }
    papers = sorted({file.parent.name for file in (CONF_DIR / "experiment").glob("*/*.yaml")})
    groups["experiment"] += [f"{paper}/TABLE" for paper in papers]
    return _HELP.format(
        verbs="\n".join(f"  {name:<10} {text}" for name, (_, text) in VERBS.items()),
        groups="\n".join(f"  {group:<22} {', '.join(names)}" for group, names in groups.items()),
    )


# --- run and sweep ---------------------------------------------------------------------------


def _compose_and_run(arguments: list[str]) -> int:
    """Compose with Hydra; a sweep runs inside Hydra's sweeper, a single cell after it."""
    from zolab import compose

    options, overrides = _split(arguments)
    prepared = compose.prepare_overrides(overrides)
    with compose.told():
        config = _hydra([*options, *prepared])
    return 0 if config is None else _run_one(config)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own options (with their values) apart from the overrides.

    Raises:
        UserError: an option that does not exist, or lacks its value.
    """
    options: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for argument in arguments:
        if takes_value:
            options.append(argument)
            takes_value = False
        elif argument.startswith("-"):
            name = argument.partition("=")[0]
            known = (*_FLAGS, *_OPTIONS)
            if name not in known:
                raise UserError(f"{argument}: no such option{nearest(name, known)}")
            options.append(argument)
            takes_value = argument in _OPTIONS
        else:
            overrides.append(argument)
    if takes_value:
        raise UserError(f"{options[-1]}: a value must follow")
    for name, value in itertools.pairwise([word for text in options for word in text.split("=")]):
        if name in ("-c", "--cfg") and value not in _SHOWN:
            raise UserError(f"{name} {value}: expected one of {', '.join(_SHOWN)}")
    return options, overrides


def _hydra(arguments: list[str]) -> Any:
    """Let Hydra read the arguments; the composed config of a single run, or None if all is done."""
    import hydra

    from zolab.compose import prepare_hydra
    from zolab.config import CONF_DIR

    prepare_hydra()
    composed: list[Any] = []
    main = hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
    with _patched_process(["zolab", *arguments]):
        main(composed.append)()
    return composed[0] if composed else None


@contextlib.contextmanager
def _patched_process(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and raises instead of printing tracebacks only if told to by env."""
    from hydra.core.global_hydra import GlobalHydra

    name = "HYDRA_FULL_ERROR"
    old_argv, old_value = sys.argv, os.environ.get(name)
    sys.argv, os.environ[name] = argv, "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        if old_value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = old_value
        GlobalHydra.instance().clear()


def _run_one(config: Any) -> int:
    from zolab import compose

    if config.get("grid") is not None:
        raise UserError("grid: this experiment is a grid of cells; add -m to run them all")
    cell = compose.check(config)
    sweep = cell["sweep"]
    if cell["launcher"]["kind"] != "local" or sweep["force"] or sweep["dry_run"]:
        from launchers.sweep import launch

        return int(launch([cell], cell["launcher"], sweep).exit_code)
    folder = compose.write_cell(cell)
    print(f"run {folder.name}: {compose.title(cell)} -> {folder}", flush=True)
    return _train(folder)


def _train(folder: Path) -> int:
    """Run the cell of a run directory in this process and say how it ended."""
    from zolab.ledger import Busy, Fenced
    from zolab.process import Preempted, stop_signals_caught
    from zolab.run import run_dir

    try:
        with stop_signals_caught():
            result = run_dir(folder)
    except (UserError, KeyboardInterrupt):
        raise
    except (Busy, Fenced) as error:
        print(f"zolab: {error}", file=sys.stderr)
        return 1
    except Preempted as stop:
        print(f"zolab: {stop}; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(f"zolab: run {folder.name} failed: {_last_line(error)}", file=sys.stderr)
        print(f"zolab: traceback in {_traceback_file(folder)}", file=sys.stderr)
        return 1
    print(_summary(result, folder))
    return 0 if result.get("state", "done") == "done" else 1


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def _traceback_file(folder: Path) -> str:
    """The error.txt of the newest attempt; written here if the run could not."""
    attempts = [path for path in folder.glob("attempts/*") if path.name.isdigit()]
    newest = max(attempts, key=lambda path: int(path.name), default=None)
    file = (newest or folder) / "error.txt"
    if file.is_file():
        return str(file)
    try:
        file.write_text(traceback.format_exc())
    except OSError:
        traceback.print_exc()
        return "the lines above"
    return str(file)


def _summary(result: dict[str, Any], folder: Path) -> str:
    """One line about a result.json."""
    best = result.get("best") or {}
    state = result.get("state", "done")
    facts = [f"{result.get('steps')} steps", f"{result.get('forwards_total')} forwards"]
    metric = result.get("metric", "accuracy")
    dev, test = best.get(f"dev/{metric}"), best.get(f"test/{metric}")
    if isinstance(dev, int | float):
        facts.append(f"best dev {metric} {dev:.3f} at step {best.get('step')}")
    if isinstance(test, int | float):
        facts.append(f"test {metric} {test:.3f}")
    return f"{state}: {', '.join(facts)} -> {folder / 'result.json'}"


# --- verbs -----------------------------------------------------------------------------------


def _dashboard(arguments: list[str]) -> int:
    from analysis.dashboard.cli import dashboard

    return int(dashboard(arguments))


def _report(arguments: list[str]) -> int:
    from analysis.cli import report

    return int(report(arguments))


def _replay(arguments: list[str]) -> int:
    from zolab.verbs.replay import replay

    return replay(arguments)


def _export(arguments: list[str]) -> int:
    from zolab.verbs.export import export

    return export(arguments)


def _plan(arguments: list[str]) -> int:
    from zolab.verbs.plan import plan

    return plan(arguments)


def _doctor(arguments: list[str]) -> int:
    from zolab.verbs.doctor import doctor

    return doctor(arguments)


def _bench(arguments: list[str]) -> int:
    from zolab.verbs.bench import bench

    return bench(arguments)


def _sweep_verb(name: str) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        from launchers import verbs

        return int(getattr(verbs, name)(arguments))

    return run


#: verb -> (function of the remaining arguments, one sentence for help).
VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "plan": (_plan, "the cells of a grid: state, memory, disk and GPU-hours; loads nothing"),
    "doctor": (_doctor, "look a cell over: prompt, tokens, memory, self-check, one timed step"),
    "report": (_report, "tables, plots and a page from the logs of a runs folder"),
    "dashboard": (_dashboard, "a live page over a runs folder"),
    "replay": (_replay, "rebuild the weights of a run at any step and write a model"),
    "export": (_export, "write the tuned model or adapter of a run, at its best step or any"),
    "bench": (_bench, "step time, kernels, memory and more, measured on this machine"),
    "status": (_sweep_verb("status"), "the cells of a runs folder: state, job, step, time left"),
    "cancel": (_sweep_verb("cancel"), "stop cells that run or wait; they stay cancelled"),
    "retry": (_sweep_verb("retry"), "run failed or cancelled cells again, from where they stopped"),
    "logs": (_sweep_verb("logs"), "what the process of a cell printed; -f follows it"),
    "clean": (_sweep_verb("clean"), "remove what finished cells no longer need"),
}

if __name__ == "__main__":
    sys.exit(main())
