"""Files that appear when they are whole: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_name(path: Path) -> Path:
    """Where `path` is written until it is whole: hidden, of the same suffix, and reused by the next run."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def finish(partial: Path, path: Path) -> None:
    """Forces a file to disk, so that it is whole after a power cut too, and gives it its name."""
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` at the end; on an error nothing of it is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        finish(partial, path)
    finally:
        partial.unlink(missing_ok=True)
