"""How long work tells its caller where it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Is called with what is done next, or with a warning."""
Progress = Callable[[int, int], None]
"""Is called with (done, in all)."""


def ignore(*_: object) -> None:
    """The caller who need not know."""
