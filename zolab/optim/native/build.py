"""How the shared library of the native kernels is made; `zolab.clib` does it. No torch here."""

from __future__ import annotations

from pathlib import Path

from zolab.clib import BuildError, Recipe
from zolab.clib import library as _library

__all__ = ["BuildError", "library"]

_HERE = Path(__file__).parent
SOURCE = _HERE / "kernels.c"
_HEADERS = tuple(sorted(_HERE.glob("*.h")))  # a change in any of them makes another library
_PROBE = _HERE / "probe.py"

# No contraction of a * b + c into one rounding: the bits are those of separate operations. The two
# -fno-math flags change no value, they free the loops of errno and of exception flags.
_FLAGS = (
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fno-strict-aliasing",
)  # fmt: skip
# In order of preference. Compilers tuned to some AVX-512 machines halve their vectors unless told;
# 2.2M normals take 1.8 ms with whole vectors and 3.5 ms with half ones.
_TUNINGS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())


def library() -> Path:
    """Path of the library, see `zolab.clib.library`."""
    return _library(Recipe("kernels", SOURCE, (*_HEADERS, _PROBE), _FLAGS, _TUNINGS, probe=_PROBE))
