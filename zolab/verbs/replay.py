"""`zolab replay`: the weights of a run at a step."""

from __future__ import annotations

from zolab.verbs.common import find_run, look_over_out, run_parser, step_number, writing


def replay(arguments: list[str]) -> int:
    """Rebuild the weights of a run at a step and write them; returns the exit status."""
    parser = run_parser(
        "replay", "Rebuild the weights of a run at a step and write a model folder."
    )
    parser.add_argument(
        "--step", type=step_number, required=True, help="updates done, 0 is the start"
    )
    options = parser.parse_args(arguments)
    folder = find_run(options.run, options.run_root)
    look_over_out(options.out)
    from zolab import run

    with writing(options.out):
        run.replay(folder, options.step, options.out)
    print(f"weights of {folder.name} at step {options.step} -> {options.out}")
    return 0
