"""Runs every kernel of a new library once: `python probe.py LIBRARY`, status 0 if all is well.

Started by `build` in a process of its own, without torch.
"""

from __future__ import annotations

import ctypes
import sys

_ABI = 5
_ELEMENTS = 4099  # two tiles and a tail
_HOW = ((1, 0, 0), (1, 1, 0), (0, 0, 1))  # steps divide, by a root, or take a sign
# Philox4x32-10, key 0, counter 0: from the known-answer file of the authors' Random123 library.
_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


class Probe(ctypes.Structure):
    """`Probe` of steps.h."""

    _fields_ = (("c", ctypes.c_double), ("seed", ctypes.c_uint64), ("z", ctypes.c_void_p))


class Look(ctypes.Structure):
    """`Look` of steps.h."""

    _fields_ = (
        ("probes", ctypes.POINTER(Probe)),
        ("count", ctypes.c_int32),
        ("first", ctypes.c_int32),
        ("second", ctypes.c_int32),
        ("decay1", ctypes.c_double),
        ("share1", ctypes.c_double),
        ("decay2", ctypes.c_double),
        ("share2", ctypes.c_double),
    )


class Step(ctypes.Structure):
    """`Step` of steps.h."""

    _fields_ = (
        ("m", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("looks", ctypes.POINTER(Look)),
        ("count", ctypes.c_int32),
        ("divides", ctypes.c_int32),
        ("root", ctypes.c_int32),
        ("sign", ctypes.c_int32),
        ("floor", ctypes.c_double),
        ("times", ctypes.c_double),
        ("plus", ctypes.c_double),
    )


class Term(ctypes.Structure):
    """`Term` of terms.h."""

    _fields_ = (
        ("a", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("z", ctypes.c_void_p),
        ("stochastic", ctypes.c_int32),
        ("step", ctypes.POINTER(Step)),
    )


class Mask(ctypes.Structure):
    """`Mask` of masks.h."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("form", ctypes.c_int32),
        ("limit", ctypes.c_int32),
        ("threshold", ctypes.c_double),
        ("split", ctypes.c_int32),
    )


def open_library(path: str) -> ctypes.CDLL:
    """The library with the types of its functions declared; OSError if it is not ours."""
    lib = ctypes.CDLL(path)
    i32, i64, u32, u64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
    at, real = ctypes.c_void_p, ctypes.c_double
    signatures = {
        "zo_abi": (),
        "zo_philox": (u64, u64, u32, u32, at),
        "zo_fill": (i32, at, i64, i64, u64, u64, u32, u32, at),
        "zo_rows": (i32, at, at, i64, i64, i64, u64, u32, u32, at),
        "zo_sweep": (i32, i32, at, at, i64, i64, u64, u32, at, i32, at),
        "zo_pair": (i32, i32, at, at, i64, i64, u64, u32, u64, at, real, at, at, at),
        "zo_max_rank": (),
        "zo_product": (at, at, at, i32, i64, i64, i64),
        "zo_thin_rank": (),
        "zo_thin": (at, at, at, at, i64, i64, i64, i64, i32, i32, ctypes.c_float),
        "zo_sweep_product": (i32, at, i64, i64, i64, u32, at, i32, at, at, i32),
    }
    for name, arguments in signatures.items():
        function = getattr(lib, name, None)
        if function is None:
            raise OSError(f"{path} has no {name}")
        function.argtypes = arguments
        function.restype = None
    lib.zo_abi.restype = lib.zo_max_rank.restype = lib.zo_thin_rank.restype = i32
    if lib.zo_abi() != _ABI:
        raise OSError(f"{path} is of another version")
    return lib


def main(path: str) -> int:
    lib = open_library(path)
    words = (ctypes.c_uint32 * 4)()
    lib.zo_philox(0, 0, 0, 0, words)
    if tuple(words) != _WORDS:
        print("Philox words are wrong", file=sys.stderr)
        return 1
    table = (ctypes.c_float * 256)()
    mask = (ctypes.c_uint8 * _ELEMENTS)(*([1, 0, 1] * _ELEMENTS)[:_ELEMENTS])
    rows = (ctypes.c_int64 * 1)(3)
    weight, plus, minus = ((ctypes.c_double * _ELEMENTS)() for _ in range(3))
    places = (ctypes.c_uint16 * 4)(0, 2047, 7, 1)
    starts = (ctypes.c_int32 * 4)(0, 2, 3, 4)
    moment = (ctypes.c_float * _ELEMENTS)()
    looks = (Look * 1)(Look((Probe * 1)(Probe(0.5, 1, None)), 1, 1, 1, 0.9, 0.1, 0.9, 0.1))
    steps = [Step(ctypes.addressof(moment), None, looks, 1, *how, 0.1, 1.0, 1e-8) for how in _HOW]
    terms = (Term * 2)(Term(0.5, 0.9, 1, None, 1), Term(0.5, 1.0, 2, None, 0))
    updates = [(Term * 1)(Term(0.5, 0.9, 1, None, 1, ctypes.pointer(step))) for step in steps]
    factor = (ctypes.c_float * 150)(*range(150))
    factors = (ctypes.c_void_p * 2)(*2 * (ctypes.addressof(factor),))
    lib.zo_product(weight, factor, factor, 3, 50, 0, 11)
    lib.zo_thin(weight, plus, factor, factor, 0, 5, 50, 37, 3, 4, 0.5)
    for dtype in range(4):
        lib.zo_sweep_product(dtype, weight, 0, 11, 50, 2, terms, 2, factors, factors, 3)
    for kind in range(3):
        lib.zo_fill(kind, weight, 0, _ELEMENTS, 5, 1, 2, 0, table)
        lib.zo_rows(kind, weight, rows, 0, 1, 77, 1, 2, 0, table)
        for dtype in range(4):
            for form, limit in ((0, 0), (1, 0), (2, 0), (1, 1), (2, 2), (0, 1), (3, 0)):
                at = (None, mask, mask, places)[form]
                at = at and ctypes.addressof(at)
                chosen = ctypes.byref(Mask(at, ctypes.addressof(starts), form, limit, 0.5, 1))
                ends = (chosen, 0, _ELEMENTS, 5, 2)
                lib.zo_sweep(kind, dtype, weight, *ends, terms, 2, table)
                for update in updates if dtype < 3 else ():
                    lib.zo_sweep(kind, dtype, weight, *ends, update, 1, table)
                lib.zo_pair(kind, dtype, weight, *ends, 1, None, 0.1, plus, minus, table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
