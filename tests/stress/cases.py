"""Cases from seeds: each builds one input, tries it, and raises AssertionError where the answer is not allowed.

What is allowed: a result, or a LavtError whose message is one line; within a time limit.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lavt_edge.errors import LavtError

Rng = np.random.Generator
Case = Callable[[Rng], None]
Kind = Callable[[Path], Case]
"""What sets up the cases of one kind of input in an empty folder."""
Answer = TypeVar("Answer")

LIMIT = 30.0
"""Seconds after which a case counts as hanging."""


def try_cases(
    kind: str, case: Case, cases: int, seed: int, seconds: float = float("inf"), *, watchdog: bool = False
) -> int:
    """Tries up to `cases` cases until the time is up; how many. Raises AssertionError that says which one failed.

    With a watchdog, code in C that never returns ends the process after four times LIMIT, its stacks on stderr.
    """
    begun = time.monotonic()
    for index in range(cases):
        if time.monotonic() - begun > seconds:
            return index
        try:
            if watchdog:
                faulthandler.dump_traceback_later(4 * LIMIT, exit=True)
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case(np.random.default_rng([seed, index]))
        except Exception as error:
            raise AssertionError(
                f"{kind}: seed {seed}, case {index}: {type(error).__name__}: {str(error)[:1000]}\n"
                f"again: python -m lavt_edge.tests.stress.inputs --kind {kind!r} --seed {seed} --case {index}"
            ) from error
        finally:
            if watchdog:
                faulthandler.cancel_dump_traceback_later()
    return cases


@contextmanager
def limited() -> Iterator[None]:
    """Raises AssertionError within what takes longer than LIMIT, and after it where that was caught there.

    Only the main thread is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late = f"no answer after {LIMIT:g} seconds"
    fired = False

    def hangs(*_: object) -> None:
        nonlocal fired
        fired = True
        raise AssertionError(late)

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not fired, late


def attempt(call: Callable[[], Answer], kind: type[LavtError] = LavtError) -> Answer | LavtError:
    """What a call returns, or the error of this kind that it raises, whose message must be one printable line."""
    try:
        return call()
    except kind as error:
        message = str(error)
        assert message, "an error without a message"
        assert len(message.splitlines()) == 1, f"{message!r} is more than one line"
        assert message.isprintable(), f"{message!r} cannot be printed"
        return error


# damage


def damaged(data: bytes, rng: Rng, other: bytes = b"") -> bytes:
    """A file with something done to it: cut, bytes or bits changed, parts zeroed, doubled, removed, or of another."""
    content = bytearray(data)
    size = len(content)
    if not size:
        return rng.bytes(int(rng.integers(1, 100)))
    # Headers are where decoders decide; half of the damage is there.
    low, high = (0, min(size, 256)) if rng.random() < 0.5 else (0, size)
    at = int(rng.integers(low, high))
    length = int(rng.integers(1, min(size, 4096) + 1))
    match int(rng.integers(9)):
        case 0:
            del content[at:]
        case 1:
            for place in rng.integers(low, high, int(rng.integers(1, 9))):
                content[place] = int(rng.integers(256))
        case 2:
            content[at] ^= 1 << int(rng.integers(8))
        case 3:
            content[at : at + length] = bytes(len(content[at : at + length]))
        case 4:
            del content[at : at + length]
        case 5:
            content[at:at] = rng.bytes(int(rng.integers(1, 64)))
        case 6:
            content[at:at] = content[at : at + length]
        case 7:
            content[at:] = (other or rng.bytes(size))[at:]
        case 8:
            content[at : at + 4] = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])).to_bytes(4, "big")
    return bytes(content)


HUGE = 10**400
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**53, -(2**63), 2**64, HUGE),
    *("", "x", "\0", "\n", "../x", "/etc/passwd", "é中", "\ud800", "a" * 5000, "fp32", "cpu", "nan", "1"),
    *([], {}, [None], {"": None}, [[]], [1, 2], {"x": {}}, float("nan"), float("inf")),
)


def damaged_json(data: Any, rng: Rng) -> bytes:
    """The text of a JSON value in which something is another value, missing, doubled, deep, or no JSON at all."""
    text = json.dumps(data)
    match int(rng.integers(12)):
        case 0:
            return damaged(text.encode(), rng)
        case 1:
            return _with_double_key(text, rng)
        case 2:
            depth = int(rng.choice([50, 900, 1100, 20_000, 100_000]))
            deep = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth])
            return _replaced(data, rng, str(deep))
        case 3:
            numbers = ["1" + "0" * 5000, "-1e999", "1E400", "0." + "1" * 5000, "NaN", "-Infinity", "1e-400"]
            return _replaced(data, rng, str(rng.choice(numbers)))
        case 4:
            return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0"]) + text.encode()
        case 5:
            return text.encode(str(rng.choice(["utf-16", "utf-32", "utf-8"]))) + b" " * int(rng.integers(3))
        case _:
            changed = json.loads(text)
            for _ in range(int(rng.integers(1, 4))):
                changed = _changed(changed, rng)
            return json.dumps(changed).encode()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value within a JSON value; of a long list only to its ends."""
    items: Sequence[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        items = list(enumerate(value)) if len(value) < 20 else [(0, value[0]), (len(value) - 1, value[-1])]
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def _pick(value: Any, rng: Rng) -> tuple[Any, ...]:
    """A place, so that every depth is as likely as any other."""
    path: tuple[Any, ...] = ()
    while isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        path, value = (*path, key), value[key]
    return path


def _changed(data: Any, rng: Rng) -> Any:
    place = _pick(data, rng)
    odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    if not place:
        return odd
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    match int(rng.integers(6)):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[str(odd)[:50]] = parent.pop(key)
        case 2:
            others = places(data)
            found = data
            for step in others[int(rng.integers(len(others)))]:
                found = found[step]
            parent[key] = json.loads(json.dumps(found))
        case 3 if isinstance(parent[key], list):
            parent[key] = parent[key][: int(rng.integers(len(parent[key]) + 1))]
        case 4 if type(parent[key]) in (int, float):
            parent[key] = parent[key] * rng.choice([-1, 0, 2, 10**6]).item()
        case _:
            parent[key] = odd
    return data


_MARK = "@here@"


def _replaced(data: Any, rng: Rng, literal: str) -> bytes:
    """The text with one value spelt `literal`."""
    changed, place = json.loads(json.dumps(data)), _pick(data, rng)
    if not place:
        return literal.encode()
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = _MARK
    return json.dumps(changed).replace(f'"{_MARK}"', literal).encode()


def _with_double_key(text: str, rng: Rng) -> bytes:
    starts = [i for i, c in enumerate(text) if c == "{"]
    at = starts[int(rng.integers(len(starts)))] + 1
    keys = ("format_version", "files", "role", "key", "ranges", "sides", "format", "engines")
    first = json.dumps(keys[int(rng.integers(len(keys)))])
    return (text[:at] + f"{first}: 7, {first}: [], " + text[at:]).encode()
