"""What the console scripts' tests share; the fixture `command` runs one."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str]) -> str:
    """The one line of a command that refuses its input."""
    code, _, stderr = result
    assert code == 1
    assert stderr.strip().count("\n") == 0
    assert stderr.startswith("error: ")
    return stderr
