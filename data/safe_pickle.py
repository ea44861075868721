"""Reads pickles of plain data: lists, dicts, tuples, strings, numbers, booleans and None, of protocols 0 to 5.

RefCOCO's `refs(...).p` are such. A pickle is a program: this is Python's own interpreter of it, left with the opcodes
that build plain data and with stand-ins for the few names that plain data goes by (`OrderedDict`, numpy's numbers).
Nothing is imported, nothing else can be called, and what a file can make the reader allocate is bounded by its size:
memo slots are given in order, dict keys are strings (numbers could be chosen to collide), containers are counted.

Opcodes: Python's `pickletools` (PEP 307 for protocol 2, PEP 3154 for protocol 4).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

import numpy as np

from ..errors import DatasetError

MAX_BYTES = 128 * 2**20
"""Largest file read. RefCOCO's are some tens of MB."""
MAX_CONTAINERS = 4_000_000
"""Most lists, dicts and tuples built. RefCOCO's 50,000 refs take half a million; as OrderedDicts of Python 2, 2.8."""
MAX_MEMO = 12_000_000
"""Most memo slots. RefCOCO's 50,000 refs take about 3 million."""

_PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("INT", "LONG", "FLOAT", "STRING", "UNICODE", "PUT", "GET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "SHORT_BINBYTES"),
)
_CONTAINERS = ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_Loader = Callable[["_PlainUnpickler"], None]
_Unpickler: Any = pickle._Unpickler  # the one in Python, which has `dispatch`


class _RefusedError(Exception):
    """Why a pickle is not read, in a few words."""


_CODE = "a pickle that imports or calls code"


def read_plain_pickle(path: Path) -> object:
    """The plain data pickled in a file, written by Python 2 or 3.

    Byte strings, which Python 2 writes for `str`, are read as UTF-8 if they are valid UTF-8, else as Latin-1; numpy's
    numbers as Python's, an OrderedDict as a dict.

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
        newer = data[:1] == pickle.PROTO and data[1:2] > b"\x05"
        if newer or not data or data[0] not in self.dispatch:
            raise _RefusedError("not a pickle of protocol 0 to 5")
        super().__init__(io.BytesIO(data))
        self.memo = _Memo()
        self.containers = 0
        self.calls = False

    def load(self) -> object:
        value: object = super().load()
        if self.calls:
            _check_plain(value)
        return value

    def count(self, containers: int) -> None:
        self.containers += containers
        if self.containers > MAX_CONTAINERS:
            raise _RefusedError(f"more than {MAX_CONTAINERS} containers")

    def find_class(self, module: str, name: str) -> object:
        self.calls = True
        if (module, name) not in _STAND_INS:
            raise _RefusedError(_CODE)
        return _STAND_INS[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        raise _RefusedError(_CODE)

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

    def load_unicode(self) -> None:
        super().load_unicode()
        self.stack[-1].encode()

    def load_short_binbytes(self) -> None:
        self.calls = True  # only a number's bytes are plain data
        super().load_short_binbytes()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_reduce(self) -> None:
        function, arguments = self.stack[-2:]
        if type(function) is not FunctionType:  # no opcode makes one: what is one here is a stand-in
            raise _RefusedError(_CODE)
        if function is _ordered_dict and arguments:
            self.count(len(arguments[0]))
        super().load_reduce()

    def load_build(self) -> None:
        if type(self.stack[-2]) is not _DType:
            raise _RefusedError(_CODE)
        super().load_build()

    def load_stop(self) -> None:
        if len(self.stack) != 1 or self.metastack:
            raise _RefusedError("a damaged pickle that leaves other than one value")
        super().load_stop()


def _check_keys(keys: Sequence[object]) -> None:
    if any(type(key) is not str for key in keys):
        raise _RefusedError("a pickle with a dict key that is not text")


def _check_plain(value: object) -> None:
    """Raises _RefusedError if a stand-in, or what only a stand-in takes, is part of a value."""
    left, met = [value], set()
    while left:
        item = left.pop()
        if isinstance(item, str | int | float | None):
            continue
        if not isinstance(item, list | tuple | dict):
            raise _RefusedError(f"a pickle of other than plain data ({type(item).__name__})")
        if id(item) not in met:
            met.add(id(item))
            left += item.values() if isinstance(item, dict) else item


class _DType:
    """A numpy dtype of a number, as pickles build it: its name first, its byte order later."""

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError
        self.order = state[1]


def _dtype(name: str, align: int, copy: int) -> _DType:
    if not re.fullmatch("[iu][1248]|f[248]|b1", name):
        raise _RefusedError(f"a pickle of other than plain data (numpy's {name!r:.20})")
    return _DType(name)


def _scalar(dtype: _DType, data: str | bytes) -> object:
    size = int(dtype.name[1:])
    if isinstance(data, str):  # a byte string of Python 2: of UTF-8 and Latin-1, only one gives back as many bytes
        data = data.encode() if len(data.encode()) == size else data.encode("latin-1")
    if len(data) != size:
        raise ValueError
    return np.frombuffer(data, dtype.order + dtype.name)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes to protocols 0 to 2."""
    if encoding != "latin1" or len(text) > 8:
        raise _RefusedError("a pickle of other than plain data (bytes)")
    return text.encode("latin-1")


def _ordered_dict(items: Sequence[tuple[str, object]] = ()) -> dict[str, object]:
    _check_keys([key for key, _ in items])
    return dict(items)


_STAND_INS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


def _loader(name: str, load: _Loader) -> _Loader:
    """What an opcode does here; `load` is what it does in `pickle`."""
    own: _Loader = getattr(_PlainUnpickler, load.__name__)

    def count(unpickler: _PlainUnpickler) -> None:
        unpickler.count(1)
        own(unpickler)

    def refuse(unpickler: _PlainUnpickler) -> NoReturn:
        raise _RefusedError(f"a pickle of other than plain data (opcode {name})")

    if name in _PLAIN:
        return own
    return count if name in _CONTAINERS else refuse


_PlainUnpickler.dispatch = {
    ord(op.code): _loader(op.name, _Unpickler.dispatch[ord(op.code)]) for op in pickletools.opcodes
}
