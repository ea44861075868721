"""Kills at every step: an action is killed before its first operation on files, then before its second, to its last."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

_OPERATIONS = frozenset(("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"))


def kill_at_each_step(
    folder: Path, begin: Callable[[], None], act: Callable[[], None], check: Callable[[], None]
) -> int:
    """Runs `begin`, `act` in a process that is killed, and `check`, for each step of `act`; how many steps it has.

    A step is an operation on a path within `folder`.
    """
    for step in count():
        begin()
        process = os.fork()
        if process == 0:
            _act_until(str(folder), step, act)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return step
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"step {step} failed by itself"
        check()
    raise AssertionError


def _act_until(folder: str, last: int, act: Callable[[], None]) -> None:
    """In a process of its own, which ends here."""
    steps = count()

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _OPERATIONS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if os.fspath(arguments[0]).startswith(folder) and next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        act()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)
