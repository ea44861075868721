"""Reads pickles of plain data: lists, dicts, tuples, strings, numbers, booleans and None.

RefCOCO's `refs(...).p` are such. A pickle is a program: this is Python's own interpreter of it, left with the opcodes
that build plain data. Nothing can be imported or called, and what a file can make the reader allocate is bounded by its
size: memo slots are given in order, dict keys are strings (numbers could be chosen to collide), containers are counted.

Opcodes: Python's `pickletools` (PEP 307 for protocol 2, PEP 3154 for protocol 4).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import DatasetError

MAX_BYTES = 128 * 2**20
"""Largest file read. RefCOCO's are some tens of MB."""
MAX_CONTAINERS = 2_000_000
"""Most lists, dicts and tuples built. RefCOCO's 50,000 refs take about half a million."""
MAX_MEMO = 12_000_000
"""Most memo slots. RefCOCO's 50,000 refs take about 3 million."""

_PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
)
_CONTAINERS = ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_Loader = Callable[["_PlainUnpickler"], None]
_Unpickler: Any = pickle._Unpickler  # the one in Python, which has `dispatch`


class _RefusedError(Exception):
    """Why a pickle is not read, in a few words."""


def read_plain_pickle(path: Path) -> object:
    """The plain data pickled in a file (protocols 2 to 5, written by Python 2 or 3).

    Byte strings, which Python 2 writes for `str`, are read as UTF-8 if they are valid UTF-8, else as Latin-1.

    Raises:
        DatasetError: the file is unreadable, larger than `MAX_BYTES`, truncated, or holds anything but plain data.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _RefusedError(f"larger than {MAX_BYTES >> 20} MiB")
        return _PlainUnpickler(path.read_bytes()).load()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except _RefusedError as reason:
        raise DatasetError(f"{path}: refused, {reason}; get the file from its publisher again") from None
    except (pickle.UnpicklingError, struct.error, EOFError, LookupError, AttributeError, TypeError, ValueError):
        raise DatasetError(
            f"{path}: refused, a truncated or damaged pickle; get the file from its publisher again"
        ) from None


class _Memo(dict[int, object]):
    """Slots that are given in order, from 0 (Python 3) or 1 (Python 2's cPickle)."""

    def __setitem__(self, index: int, value: object) -> None:
        if index > len(self) + 1:
            raise _RefusedError(f"a pickle whose memo jumps to slot {index}")
        if len(self) >= MAX_MEMO:
            raise _RefusedError(f"more than {MAX_MEMO} memo slots")
        super().__setitem__(index, value)


class _PlainUnpickler(_Unpickler):
    def __init__(self, data: bytes) -> None:
        if data[:1] != pickle.PROTO or data[1] > 5:
            raise _RefusedError("not a pickle of protocol 2 to 5")
        super().__init__(io.BytesIO(data))
        self.memo = _Memo()
        self.containers = 0

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _RefusedError("a pickle that imports or calls code")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _RefusedError("a pickle that imports or calls code")

    def _decode_string(self, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")

    # Python's own let lone surrogates through.
    def load_binunicode(self) -> None:
        self.append(self.read(int.from_bytes(self.read(4), "little")).decode())

    def load_short_binunicode(self) -> None:
        self.append(self.read(self.read(1)[0]).decode())

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_stop(self) -> None:
        if len(self.stack) != 1 or self.metastack:
            raise _RefusedError("a damaged pickle that leaves other than one value")
        super().load_stop()


def _check_keys(keys: list[object]) -> None:
    if any(type(key) is not str for key in keys):
        raise _RefusedError("a pickle with a dict key that is not text")


def _loader(name: str, load: _Loader) -> _Loader:
    """What an opcode does here; `load` is what it does in `pickle`."""

    def count(unpickler: _PlainUnpickler) -> None:
        unpickler.containers += 1
        if unpickler.containers > MAX_CONTAINERS:
            raise _RefusedError(f"more than {MAX_CONTAINERS} containers")
        load(unpickler)

    def refuse(unpickler: _PlainUnpickler) -> NoReturn:
        raise _RefusedError(f"a pickle of other than plain data (opcode {name})")

    if name in _PLAIN:
        own: _Loader = getattr(_PlainUnpickler, load.__name__)
        return own
    return count if name in _CONTAINERS else refuse


_PlainUnpickler.dispatch = {
    ord(op.code): _loader(op.name, _Unpickler.dispatch[ord(op.code)]) for op in pickletools.opcodes
}
