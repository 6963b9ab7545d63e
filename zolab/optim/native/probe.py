"""Runs every kernel of a new library once: `python probe.py LIBRARY`, status 0 if all is well.

Started by `build` in a process of its own, without torch.
"""

from __future__ import annotations

import ctypes
import sys

_ABI = 12
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


class Fill(ctypes.Structure):
    """`Fill` of kernels.c."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("stream", ctypes.c_uint32),
        ("out", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("table", ctypes.c_void_p),
    )


class Rows(ctypes.Structure):
    """`Rows` of kernels.c."""

    _fields_ = (("each", Fill), ("index", ctypes.c_void_p), ("width", ctypes.c_int64))


class Sweep(ctypes.Structure):
    """`Sweep` of kernels.c."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("weight", ctypes.c_void_p),
        ("mask", ctypes.POINTER(Mask)),
        ("offset", ctypes.c_uint64),
        ("terms", ctypes.POINTER(Term)),
        ("table", ctypes.c_void_p),
    )


class Pair(ctypes.Structure):
    """`Pair` of kernels.c."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("weight", ctypes.c_void_p),
        ("mask", ctypes.POINTER(Mask)),
        ("offset", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("kept", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        ("plus", ctypes.c_void_p),
        ("minus", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
    )


class Few(ctypes.Structure):
    """`Few` of few.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("weight", ctypes.c_void_p),
        ("mask", ctypes.POINTER(Mask)),
        ("offset", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("eps", ctypes.c_double),
        ("was", ctypes.c_void_p),
        ("now", ctypes.c_void_p),
        ("then", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("begun", ctypes.c_int32),
    )


class Put(ctypes.Structure):
    """`Put` of few.h."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("mask", ctypes.POINTER(Mask)),
        ("offset", ctypes.c_uint64),
        ("values", ctypes.c_void_p),
    )


class Left(ctypes.Structure):
    """`Left` of product.h."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("down", ctypes.c_int64),
        ("across", ctypes.c_int64),
    )


class Product(ctypes.Structure):
    """`Product` of kernels.c."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("left", Left),
        ("right", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("rank", ctypes.c_int32),
    )


class SweepProduct(ctypes.Structure):
    """`SweepProduct` of kernels.c."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("pid", ctypes.c_uint32),
        ("weight", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("terms", ctypes.POINTER(Term)),
        ("left", ctypes.POINTER(Left)),
        ("right", ctypes.POINTER(ctypes.c_void_p)),
    )


class Thin(ctypes.Structure):
    """`Thin` of thin.h."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("relu", ctypes.c_int32),
        ("times", ctypes.c_float),
        ("scales", ctypes.c_float * 2),
    )


class Turn(ctypes.Structure):
    """`Turn` of kernels.c."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("rank", ctypes.c_int32),
    )


class Norm(ctypes.Structure):
    """`Norm` of norm.h."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p * 2),
        ("bias", ctypes.c_void_p * 2),
        ("n", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("eps", ctypes.c_double),
    )


class Lot(ctypes.Structure):
    """`Lot` of jobs.h."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("asked", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("unit", ctypes.c_int64),
        ("weight", ctypes.c_int64),
    )


#: Entry points that lots run, and what they take.
JOBS = {
    "zo_fill": Fill,
    "zo_rows": Rows,
    "zo_sweep": Sweep,
    "zo_pair": Pair,
    "zo_few": Few,
    "zo_put": Put,
    "zo_product": Product,
    "zo_sweep_product": SweepProduct,
    "zo_thin": Thin,
    "zo_turn": Turn,
    "zo_norm": Norm,
}


def open_library(path: str) -> ctypes.CDLL:
    """The library with the types of its functions declared; OSError if it is not ours."""
    lib = ctypes.CDLL(path)
    i32, i64, u32, u64 = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
    at = ctypes.c_void_p
    job = (at, i64, i64)
    signatures = {
        "zo_abi": (),
        "zo_philox": (u64, u64, u32, u32, at),
        "zo_team": (at, at, at),
        "zo_share": (at, i32, i32, i32),
        "zo_run": (at, i32, i32),
        "zo_max_rank": (),
        "zo_thin_rank": (),
        **dict.fromkeys(JOBS, job),
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


def _lot(lib: ctypes.CDLL, asked: ctypes.Structure, count: int) -> tuple[Lot, ctypes.Structure]:
    """A lot of whatever takes this structure, and the structure, which must live as long."""
    name = next(name for name, kind in JOBS.items() if type(asked) is kind)
    run = ctypes.cast(getattr(lib, name), ctypes.c_void_p).value
    return Lot(run, ctypes.addressof(asked), count, 2048 if count > 2048 else 1, 1), asked


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
    at = ctypes.addressof
    w, p, m, f, levels = (at(x) for x in (weight, plus, minus, factor, table))
    lefts = (Left * 2)(Left(f, 3, 1), Left(f, 1, 11))
    lots = [_lot(lib, Product(w, Left(f, 3, 1), f, 50, 3), 11)]
    lots.append(_lot(lib, Thin(w, p, f, f, f, 50, 37, 5, 3, 1, 2.0, (0.5, 0.5)), 5))
    lots.append(_lot(lib, Norm(w, p, (f, f), (f, f), 37, 4, 1e-5), 4))
    lots.append(_lot(lib, Turn(w, f, 37, 3), 37))
    few = ctypes.pointer(Mask(at(places), at(starts), 3, 0, 0.0, 0))
    for dtype in range(4):
        lots.append(_lot(lib, Few(2, dtype, 2, w, few, 5, 1, 0.1, p, m, f, levels, 0), _ELEMENTS))
        lots.append(_lot(lib, Put(dtype, w, few, 5, p), _ELEMENTS))
        lots.append(_lot(lib, SweepProduct(dtype, 2, 3, 2, w, 50, terms, lefts, factors), 11))
    for kind in range(3):
        fill = Fill(kind, 2, 0, w, 5, 1, levels)
        lots += [_lot(lib, fill, _ELEMENTS), _lot(lib, Rows(fill, at(rows), 77), 1)]
        for dtype in range(4):
            for form, limit in ((0, 0), (1, 0), (2, 0), (1, 1), (2, 2), (0, 1), (3, 0)):
                held = (None, mask, mask, places)[form]
                chosen = Mask(held and at(held), at(starts), form, limit, 0.5, 1)
                told = [(terms, 2), *((update, 1) for update in updates if dtype < 3)]
                lots += [
                    _lot(
                        lib,
                        Sweep(kind, dtype, count, 2, w, ctypes.pointer(chosen), 5, some, levels),
                        _ELEMENTS,
                    )
                    for some, count in told
                ]
                both = Pair(
                    kind, dtype, 2, w, ctypes.pointer(chosen), 5, 1, None, 0.1, p, m, levels
                )
                lots.append(_lot(lib, both, _ELEMENTS))
    all_of_them = (Lot * len(lots))(*(lot for lot, _ in lots))
    lib.zo_run(all_of_them, len(lots), 2)  # in one thread: there is no team
    for thread in range(3):
        lib.zo_share(all_of_them, len(lots), thread, 3)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
