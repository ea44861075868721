"""Warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings


def warn_caller(message: str, category: type[Warning], package: str) -> None:
    """Warns at the innermost line outside `package` that called into it, whatever lies between.

    `skip_file_prefixes` of `warnings.warn` does this from Python 3.12 on.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and (level == 1 or f"{frame.f_globals.get('__name__')}.".startswith(f"{package}.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
