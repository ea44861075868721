"""How work that takes long tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Is called with what is done next, or with a warning."""
Progress = Callable[[int, int], None]
"""Is called with (done, in all)."""


def ignore(*_: object) -> None:
    """For a caller who need not know."""
