"""The inner loops of reading `.wandb` files in C (`wandb_decode.c`), where they can be built.

Everything here has its equal in numpy, in `wandb_blocks` and `wandb_rows`, which do the work where
there is no compiler or `ZOLAB_NATIVE=0`. The results are the same.
"""

from __future__ import annotations

import ctypes
import logging
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zolab.clib import BuildError, Recipe, library
from zolab.tracking.wandb_blocks import BLOCK_BYTES, FRAGMENT_BYTES, Bytes, Ints

Floats = NDArray[np.float64]

#: What a cell of a column holds; ASK: a text that is no number, or too long a one.
NOT_THERE, NUMBER, ASK = range(3)

_LOG = logging.getLogger(__name__)
_RECIPE = Recipe(
    "wandb",
    Path(__file__).with_name("wandb_decode.c"),
    flags=("-std=c11", "-O2", "-ffp-contract=off"),
)
_ABI = 1
# Powers of ten that are looked up; numbers beyond them are left to Python.
_POWERS = range(-330, 310)
_CRC_POLYNOMIAL = 0xEDB88320
_MOST_KEYS = 4096


class _Tables(ctypes.Structure):
    """`Tables` of wandb_decode.c."""

    _fields_ = (
        ("crc", ctypes.c_void_p),
        ("mantissa", ctypes.c_void_p),
        ("exponent", ctypes.c_void_p),
        ("first_power", ctypes.c_int32),
        ("last_power", ctypes.c_int32),
    )


class Decoder:
    """The loaded library.

    Args:
        path: of the library.

    Raises:
        OSError: it is no such library, or does not do what it should.
    """

    def __init__(self, path: Path) -> None:
        self._lib = _opened(path)
        self._crc = _crc_table()
        self._mantissas, self._exponents = _powers()
        self._tables = ctypes.byref(
            _Tables(
                self._crc.ctypes.data,
                self._mantissas.ctypes.data,
                self._exponents.ctypes.data,
                _POWERS[0],
                _POWERS[-1],
            )
        )
        self._room = 64  # for keys, of as many as were met
        text = b"0.30000000000000004 and more"
        if self.crc32(text) != zlib.crc32(text) or self.number(text[:19]) != 0.1 + 0.2:
            raise OSError(f"{path} does not read as it should")

    def crc32(self, data: bytes) -> int:
        """`zlib.crc32` of some bytes."""
        return int(self._lib.zw_crc(self._tables, 0, data, len(data)))

    def number(self, text: bytes) -> float | None:
        """The double nearest to a JSON number; None for what has to be asked of Python."""
        value = ctypes.c_double()
        known = self._lib.zw_number(self._tables, text, len(text), ctypes.byref(value))
        return value.value if known else None

    def fragments(
        self, view: Bytes, size: int, skip: int
    ) -> tuple[Ints, Ints, Ints, Ints, Ints, int]:
        """Sound fragments of a lot of blocks; see `wandb_blocks._Fragments` for what is returned.

        Args:
            view: bytes, at least `size`.
            size: how many of them are of the file.
            skip: where the first fragment begins.
        """
        found = np.empty((4, size // FRAGMENT_BYTES + 1), np.int64)
        damage = np.empty(-(-size // BLOCK_BYTES), np.int64)
        rest = ctypes.c_int64()
        at = [column.ctypes.data for column in (view, *found, damage)]
        count = self._lib.zw_fragments(
            self._tables, at[0], size, skip, *at[1:], ctypes.byref(rest)
        )  # fmt: skip
        starts, ends, kinds, blocks = found[:, :count]
        return starts, ends, kinds, blocks, damage, rest.value

    def rows(
        self, view: Bytes, starts: Ints, ends: Ints
    ) -> tuple[Ints, NDArray[np.bool_], list[bytes], Floats, Bytes] | None:
        """Decode history records.

        Args:
            view: bytes with `wandb_blocks.SPARE_BYTES` zeros behind the last record.
            starts, ends: shape (n,), where the records lie.

        Returns:
            Steps; whether each record has the usual shape; the keys; their numbers, shape
            (num_keys, n); and what each cell holds, same shape: `NOT_THERE`, `NUMBER` or `ASK`, of
            which the number is where its text begins, one byte behind the text's length. None if
            there are too many keys.
        """
        num_rows = starts.size
        starts, ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
        steps, fits = np.empty(num_rows, np.int64), np.empty(num_rows, np.bool_)
        while self._room <= _MOST_KEYS:
            numbers = np.zeros((self._room, num_rows))
            there = np.zeros((self._room, num_rows), np.uint8)
            keys = np.empty((2, self._room), np.int64)
            into = (steps, fits, numbers, there, keys[0], keys[1])
            count = self._lib.zw_rows(
                self._tables, view.ctypes.data, starts.ctypes.data, ends.ctypes.data, num_rows,
                *(column.ctypes.data for column in into), self._room,
            )  # fmt: skip
            if count >= 0:
                places = keys[:, :count].T.tolist()
                names = [view[start:end].tobytes() for start, end in places]
                return steps, fits, names, numbers[:count], there[:count]
            if count == -2:
                raise MemoryError
            self._room *= 2
        self._room = 64
        return None


def _opened(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    i32, i64, at = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    signatures = {
        "zw_abi": (i32, ()),
        "zw_crc": (ctypes.c_uint32, (at, ctypes.c_uint32, at, i64)),
        "zw_number": (i32, (at, at, i64, at)),
        "zw_fragments": (i64, (at, at, i64, i64, *(at,) * 6)),
        "zw_rows": (i64, (at, at, at, at, i64, *(at,) * 6, i64)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name, None)
        if function is None:
            raise OSError(f"{path} has no {name}")
        function.restype, function.argtypes = result, arguments
    if lib.zw_abi() != _ABI:
        raise OSError(f"{path} is of another version")
    return lib


def _crc_table() -> NDArray[np.uint32]:
    """Shape (16, 256): CRC-32 remainder of each byte with 0 to 15 zero bytes behind it."""
    table = np.empty((16, 256), np.uint32)
    table[0] = np.arange(256)
    for _ in range(8):
        table[0] = (table[0] >> 1) ^ (_CRC_POLYNOMIAL * (table[0] & 1)).astype(np.uint32)
    for zeros in range(1, 16):
        before = table[zeros - 1]
        table[zeros] = (before >> 8) ^ table[0][before & 255]
    return table


def _powers() -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """(m, e) with m 2^e <= 10^q < (m + 1) 2^e and m of 64 bits, for each q of `_POWERS`."""
    mantissas, exponents = [], []
    for q in _POWERS:
        ten = 10 ** abs(q)
        bits = ten.bit_length()
        if q >= 0:
            exponent = bits - 64
            mantissa = ten >> exponent if exponent > 0 else ten << -exponent
        else:  # 2^k / 10^-q with the k that leaves 64 bits; it is never a power of two itself
            exponent = -(63 + bits)
            mantissa = (1 << -exponent) // ten
        mantissas.append(mantissa)
        exponents.append(exponent)
    return np.array(mantissas, np.uint64), np.array(exponents, np.int32)


_loaded: Decoder | None = None
_asked = False


def decoder() -> Decoder | None:
    """The decoder; None if it is turned off, or cannot be built or used here."""
    global _loaded, _asked
    if os.environ.get("ZOLAB_NATIVE") == "0":
        return None
    if not _asked:
        _asked = True
        try:
            _loaded = Decoder(library(_RECIPE))
        except (BuildError, OSError) as error:  # numpy does the same work
            _LOG.info("wandb files are read without the native decoder: %s", error)
    return _loaded
