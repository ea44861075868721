"""Pickles that call, import or allocate, for the tests of what reads them, and a check that none has run."""

from __future__ import annotations

import builtins
import os
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLAG = "LAVT_TEST_PAYLOAD_RAN"


class Payload:
    """Sets an environment variable when a real unpickler meets it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.putenv, (FLAG, "1")


class Executed:
    """Runs source code when a real unpickler meets it."""

    def __reduce__(self) -> tuple[object, ...]:
        return builtins.exec, (f"import os; os.environ['{FLAG}'] = '1'",)


EXEC_SOURCE = f"import os; os.environ['{FLAG}'] = '1'".encode()
PAYLOADS = [
    b"cbuiltins\nexec\n(U" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"tR",
    b"(ibuiltins\nexec\n",
    b"(cbuiltins\nexec\nU" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"o",
    b"\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"\x85R",
    b"Ppersistent\n",
    b"U\x01aQ",
    b"\x82\x01",
    b"\x83\x01\x00",
    b"\x84\x01\x00\x00\x00",
    b"}}b",
    b"ccollections\nOrderedDict\n)\x81",
    b"\x97",
    b"\x98",
    b"cbuiltins\nexec\nU" + bytes([len(EXEC_SOURCE)]) + EXEC_SOURCE + b"\x85R",
    b"cos\nputenv\n(S'" + FLAG.encode() + b"'\nS'1'\ntR",
    b"cnumpy\nload\n(S'x'\ntR",
    b"ccollections\nOrderedDict.fromkeys\n(]tR",
    b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR",
    b"c_codecs\nencode\n(S'%s'\nS'latin1'\ntR" % (b"a" * 9),
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR",
    b"ccollections\nOrderedDict\n(tR}b",
    b"S'a'\n(tR",
    b"cnumpy\ndtype\n",  # a stand-in that is left in the data
    b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR",
    b"C\x01a",
]
BOMBS = [
    b"X\xff\xff\xff\xff",  # 4 GB of text declared
    b"T\xff\xff\xff\x7f",
    b"\x8d" + struct.pack("<Q", 2**62),  # BINUNICODE8
    b"\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
    b"\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8, which pickle allocates before reading
    b"\x8b\xff\xff\xff\x7f",  # LONG4
    b"\x95" + struct.pack("<Q", 2**62),  # FRAME
    b"]r\xff\xff\xff\x7f",  # a memo slot that pickle makes room for: 32 GB
    b"]p999999999999\n",
    b"I" + b"9" * 100_000 + b"\n",
    b"L" + b"9" * 100_000 + b"L\n",
    b"](((S'a'\nNtp0\n"
    + b"g0\n" * 2_000
    + b"lp1\n"
    + b"ccollections\nOrderedDict\n(g1\ntR" * 2_500
    + b"e",  # 5 million pairs
]


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def pickles_of_python_2() -> dict[str, bytes]:
    """Files that Python 2.7 wrote, by name; `write.py` is the program that did."""
    with zipfile.ZipFile(Path(__file__).parent / "data" / "pickles_of_python_2.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".p")}


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fails where a payload has left its mark by the end."""
    os.environ.pop(FLAG, None)
    yield
    assert FLAG not in os.environ
    probe = subprocess.run(["printenv", FLAG], capture_output=True, check=False)  # putenv does not show in os.environ
    assert probe.returncode == 1
