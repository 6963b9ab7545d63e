"""`zolab bench`: what zolab says about speed and memory, measured on this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from zolab.errors import UserError, nearest

#: part -> one sentence for help; each is a module of `zolab.bench`.
PARTS = {
    "step": "a step as a fraction of two bare forwards, beside the published step",
    "kernels": "sweeps over weights against the measured memory bandwidth",
    "forward": "what each trick of the forward saves",
    "memory": "peak memory of a step against inference",
    "drift": "what walking leaves in the weights, and what becomes of small updates",
    "offload": "streamed steps against the bound max(compute, transfer)",
    "startup": "seconds to the first step of a whole run, and what share is not forward",
    "logging": "microseconds a step that records cost the training thread",
}
_HELP = """\
usage: zolab bench PART [--json FILE] [OPTIONS]

Measures without network or data; `zolab bench PART --help` lists the options. With --json, a file
of rows with device, versions and command is written, and the table beside it as Markdown.

parts:
{parts}
"""


def bench(arguments: Sequence[str]) -> int:
    """Run one part; returns its exit status.

    Raises:
        UserError: no such part, or an option it does not have.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_HELP.format(parts="\n".join(f"  {k:<9} {v}" for k, v in PARTS.items())), end="")
        return 0
    if name not in PARTS:
        raise UserError(
            f"bench {name}: no such part{nearest(name, PARTS)} (parts: {', '.join(PARTS)})"
        )
    # Spinning workers of other processes on the same cores would be measured instead of our work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return int(importlib.import_module(f"zolab.bench.{name}").main(list(arguments[1:])))
