"""The folder of the user's cache that is lavt-edge's."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DatasetError


def cache_folder() -> Path:
    """`lavt-edge` in XDG_CACHE_HOME, or in ~/.cache (XDG Base Directory Specification: a relative path is ignored)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "lavt-edge"
    try:
        return Path.home() / ".cache" / "lavt-edge"
    except RuntimeError as error:
        raise DatasetError("no home folder for generated data; set XDG_CACHE_HOME, or give --data-root") from error
