"""The generated data set of a newcomer who has none: written once, kept in the user's cache."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from ... import __version__
from ..._base.cache import cache_folder
from ..._base.progress import Progress, ignore
from ...errors import DatasetError
from .write import DEFAULT_SCENES, write_refcoco

SEED = 0
_PAUSE = 0.1  # seconds between looks at what another process writes


def generated_root(split: str, progress: Progress = ignore) -> Path:
    """The folder of the generated data (seed 0, default scenes) that holds a split, in RefCOCO's layout.

    If it is not there yet it is written, whole or not at all: scenes do not depend on each other, so a split can be
    had without the others. If another process is writing it, this one waits for it. `progress` is called with
    (scenes written, scenes in all).

    Raises:
        DatasetError: no such split, or the cache cannot be written.
    """
    wanted = ("testA", "testB") if split == "test" else (split,)
    scenes = {name: count for name, count in DEFAULT_SCENES.items() if name in wanted}
    if not scenes:
        raise DatasetError(f"unknown split {split!r} of the generated data; choose one of {', '.join(DEFAULT_SCENES)}")
    root = cache_folder() / f"shapes-{generator_version()}-seed{SEED}-{split}"
    while not (root / "refcoco").is_dir():
        try:
            write_refcoco(root, seed=SEED, scenes=scenes, progress=progress)
        except DatasetError as error:
            if isinstance(error.__cause__, BlockingIOError):  # another process is writing the same bytes
                time.sleep(_PAUSE)
            elif not (root / "refcoco").is_dir():  # else it was faster
                raise DatasetError(
                    f"{error}; set XDG_CACHE_HOME, or write it elsewhere and give --data-root"
                ) from error
    return root


def generator_version() -> str:
    """Changes with everything that decides what is generated: the generator's source, for it has no other number."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
