"""Reads the data-only part of the pickle language: lists, dicts, tuples, strings, numbers, booleans and None.

RefCOCO's `refs(...).p` are pickles of plain data. A pickle is a program, so this module does not run it with `pickle`:
it interprets the opcodes that build plain data and knows no other. Nothing can be imported, called or looked up, and
what a file can make the reader allocate is bounded by its size: a declared length is never trusted, memo slots are
given in order, dict keys are strings, and containers are counted.

Opcodes and their arguments: Python's `pickletools` (PEP 307 for protocol 2, PEP 3154 for protocol 4).
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import DatasetError

MAX_BYTES = 128 * 2**20
"""Largest file read. RefCOCO's are some tens of MB."""
MAX_OPCODES = 24_000_000
"""Most opcodes interpreted. RefCOCO's 50,000 refs take about 7 million."""
MAX_CONTAINERS = 2_000_000
"""Most lists, dicts and tuples built. RefCOCO's 50,000 refs take about half a million."""
_HIGHEST_PROTOCOL = 5

_RUNS_CODE = {
    *("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"),
    *("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
}
_OPCODE_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}

_PROTO, _FRAME, _STOP, _MARK = (_CODES[n] for n in ("PROTO", "FRAME", "STOP", "MARK"))
_BININT, _BININT1, _BININT2, _LONG1, _BINFLOAT = (
    _CODES[n] for n in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
)
_BINUNICODE, _SHORT_BINUNICODE = _CODES["BINUNICODE"], _CODES["SHORT_BINUNICODE"]
_BINSTRING, _SHORT_BINSTRING = _CODES["BINSTRING"], _CODES["SHORT_BINSTRING"]
_EMPTY_LIST, _APPEND, _APPENDS = (_CODES[n] for n in ("EMPTY_LIST", "APPEND", "APPENDS"))
_EMPTY_DICT, _SETITEM, _SETITEMS = (_CODES[n] for n in ("EMPTY_DICT", "SETITEM", "SETITEMS"))
_FILLING = frozenset({_APPEND, _APPENDS, _SETITEM, _SETITEMS})
_BINGET, _LONG_BINGET, _BINPUT, _LONG_BINPUT, _MEMOIZE = (
    _CODES[n] for n in ("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE")
)
_TUPLE = _CODES["TUPLE"]
_CONSTANTS: dict[int, object] = {_CODES["NONE"]: None, _CODES["NEWTRUE"]: True, _CODES["NEWFALSE"]: False}
_SHORT_TUPLES = {_CODES["EMPTY_TUPLE"]: 0, _CODES["TUPLE1"]: 1, _CODES["TUPLE2"]: 2, _CODES["TUPLE3"]: 3}


class _RefusedError(Exception):
    """Why a pickle is not read, in a few words."""


def _python2_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _unsigned(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _float(raw: bytes) -> float:
    value: float = struct.unpack(">d", raw)[0]
    return value


# Opcodes whose argument begins with its length, of so many bytes; and those whose argument has so many bytes.
_Decoder = Callable[[bytes], object]
_SIZED: Mapping[int, tuple[int, _Decoder]] = {
    _BINUNICODE: (4, bytes.decode),
    _SHORT_BINUNICODE: (1, bytes.decode),
    _BINSTRING: (4, _python2_text),
    _SHORT_BINSTRING: (1, _python2_text),
    _LONG1: (1, _signed),
}
_FIXED: Mapping[int, tuple[int, _Decoder]] = {
    _BININT1: (1, _unsigned),
    _BININT2: (2, _unsigned),
    _BININT: (4, _signed),
    _BINFLOAT: (8, _float),
}


def read_plain_pickle(path: Path) -> object:
    """The plain data pickled in a file (protocols 2 to 5, written by Python 2 or 3).

    Byte strings, which Python 2 writes for `str`, are read as UTF-8 where they are valid UTF-8, else as Latin-1.

    Raises:
        DatasetError: the file is unreadable, larger than `MAX_BYTES`, truncated, or holds anything but plain data.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _RefusedError(f"larger than {MAX_BYTES >> 20} MiB")
        return _interpret(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except _RefusedError as reason:
        raise DatasetError(f"{path}: refused, {reason}; get the file from its publisher again") from None


def _interpret(data: bytes) -> object:
    # A length that points past the end is caught where the next opcode is fetched: a slice never exceeds the file.
    try:
        return _run(data)
    except IndexError:
        raise _RefusedError("a truncated or damaged pickle") from None
    except UnicodeDecodeError:
        raise _RefusedError("a damaged pickle with text that is not UTF-8") from None
    except struct.error:
        raise _RefusedError("a truncated pickle") from None


def _run(data: bytes) -> object:
    """The pickled value. IndexError where opcodes, stack, marks or memo run out."""
    stack: list[object] = []
    marks: list[int] = []
    memo: list[object] = []
    containers = 0
    at = 0
    from_bytes = int.from_bytes
    if data[:1] != b"\x80" or data[1] > _HIGHEST_PROTOCOL:
        raise _RefusedError(f"not a pickle of protocol 2 to {_HIGHEST_PROTOCOL}")
    for _ in range(MAX_OPCODES):
        op = data[at]
        at += 1
        if op == _BINPUT:
            _put(memo, data[at], stack[-1])
            at += 1
        elif op == _LONG_BINPUT:
            _put(memo, from_bytes(data[at : at + 4], "little"), stack[-1])
            at += 4
        elif op in _SIZED:
            width, decode = _SIZED[op]
            start = at + width
            at = start + from_bytes(data[at:start], "little")
            stack.append(decode(data[start:at]))
        elif op in _FIXED:
            width, decode = _FIXED[op]
            stack.append(decode(data[at : at + width]))
            at += width
        elif op == _BINGET:
            stack.append(memo[data[at]])
            at += 1
        elif op == _LONG_BINGET:
            stack.append(memo[from_bytes(data[at : at + 4], "little")])
            at += 4
        elif op == _MEMOIZE:
            memo.append(stack[-1])
        elif op == _MARK:
            marks.append(len(stack))
        elif op in _FILLING:
            _fill(op, stack, marks)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op == _PROTO:
            at += 1
        elif op == _FRAME:
            at += 8
        elif op == _STOP:
            if len(stack) != 1 or marks:
                raise _RefusedError("a damaged pickle that leaves other than one value")
            return stack[0]
        else:
            containers += 1
            if containers > MAX_CONTAINERS:
                raise _RefusedError(f"more than {MAX_CONTAINERS} containers")
            _push_container(op, stack, marks)
    raise _RefusedError(f"more than {MAX_OPCODES} opcodes")


def _fill(op: int, stack: list[object], marks: list[int]) -> None:
    """Puts what lies on top of the stack into the list or dict below it."""
    if op == _APPEND:
        item = stack.pop()
        _extend(stack[-1], [item])
    elif op == _APPENDS:
        items = _pop_to_mark(stack, marks)
        _extend(stack[-1], items)
    elif op == _SETITEM:
        item, key = stack.pop(), stack.pop()
        _set_items(stack[-1], [key, item])
    else:
        items = _pop_to_mark(stack, marks)
        _set_items(stack[-1], items)


def _push_container(op: int, stack: list[object], marks: list[int]) -> None:
    if op == _EMPTY_LIST:
        stack.append([])
    elif op == _EMPTY_DICT:
        stack.append({})
    elif op == _TUPLE:
        items = _pop_to_mark(stack, marks)
        stack.append(tuple(items))
    elif op in _SHORT_TUPLES:
        length = _SHORT_TUPLES[op]
        if length > len(stack):
            raise IndexError
        start = len(stack) - length
        stack[start:] = [tuple(stack[start:])]
    else:
        name = _OPCODE_NAMES.get(op)
        if name in _RUNS_CODE:
            raise _RefusedError(f"a pickle that imports or calls code (opcode {name})")
        raise _RefusedError(f"a pickle of other than plain data (opcode {name or hex(op)})")


def _put(memo: list[object], index: int, value: object) -> None:
    # Writers number memo slots in order, from 0 (Python 3) or 1 (Python 2's cPickle).
    if index == len(memo):
        memo.append(value)
    elif index < len(memo):
        memo[index] = value
    elif index == len(memo) + 1:
        memo += (None, value)
    else:
        raise _RefusedError(f"a pickle whose memo jumps to slot {index}")


def _pop_to_mark(stack: list[object], marks: list[int]) -> list[object]:
    start = marks.pop()
    if start > len(stack):
        raise IndexError
    items = stack[start:]
    del stack[start:]
    return items


def _extend(target: object, items: list[object]) -> None:
    if type(target) is not list:
        raise _RefusedError("a damaged pickle that appends to other than a list")
    target += items


def _set_items(target: object, items: list[object]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise _RefusedError("a damaged pickle that sets items of other than a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise _RefusedError("a pickle with a dict key that is not text")
        target[key] = value
