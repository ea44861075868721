"""Many segmentations in one process: memory, open files and threads stay what they were.

python -m lavt_edge.tests.stress.soak --calls 10000 --seed 0
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images import ImageLike
from lavt_edge.tests.stress.source import export_demo
from PIL import Image

WARM_UP = 500
MAX_SLOPE = 1024.0
"""Bytes of resident memory per call, by least squares after the warm-up."""
_EVERY = 100
_SENTENCES = 2000
"""Several times what the prompt cache keeps."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def run(
    bundle: Path,
    calls: int,
    seed: int,
    warm_up: int = WARM_UP,
    every: int = _EVERY,
    limit: float = MAX_SLOPE,
) -> dict[str, int | float]:
    """Segments `calls` times, images of many sizes and kinds, sentences that the cache has forgotten; the figures.

    Raises AssertionError where open files or threads change, and MemoryError where memory grows by more than `limit`
    bytes per call; a few hundred calls need a wider one, as the allocator has not settled.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *about: None  # of sentences that are cut
        return _run(bundle, calls, seed, warm_up, every, limit)


def _run(bundle: Path, calls: int, seed: int, warm_up: int, every: int, limit: float) -> dict[str, int | float]:
    begun = time.monotonic()
    rng = np.random.default_rng(seed)
    at: list[int] = []
    resident: list[int] = []
    with tempfile.TemporaryDirectory() as folder, Segmenter.load(bundle, device="cpu", threads=2) as segmenter:
        images, sentences = _images(Path(folder)), _sentences(rng)
        before = (0, 0)
        for call in range(calls):
            image = images[int(rng.integers(len(images)))]
            result = segmenter.segment(image, sentences[int(rng.integers(len(sentences)))])
            assert result.probability.shape == result.mask.shape
            if call + 1 == warm_up:
                before = _open_files(), _threads()
            if call + 1 >= warm_up and (call + 1) % every == 0:
                at.append(call + 1)
                resident.append(_resident())
                found = _open_files(), _threads()
                assert found == before, f"open files and threads were {before}, after {call + 1} calls {found}"
    slope = float(np.polyfit(at, resident, 1)[0])
    figures: dict[str, int | float] = {
        "calls": calls,
        "bytes of memory per call": round(slope, 1),
        "resident MB at the start": round(resident[0] / 1e6, 1),
        "resident MB at the end": round(resident[-1] / 1e6, 1),
        "resident MB at most": round(_peak() / 1e6, 1),
        "open files": before[0],
        "threads": before[1],
        "seconds": round(time.monotonic() - begun, 1),
    }
    if slope > limit:
        raise MemoryError(f"memory grows by {slope:.0f} bytes per call, {limit:.0f} are allowed: {figures}")
    return figures


def _images(folder: Path) -> list[ImageLike]:
    sizes = ((240, 240), (320, 200), (97, 311), (640, 480), (33, 20))
    images: list[ImageLike] = []
    for i in range(40):
        picture = Image.fromarray(scene_at(9, "val", i).render()).resize(sizes[i % len(sizes)])
        path = folder / f"{i}.{'jpg' if i % 2 else 'png'}"
        picture.save(path)
        images.append((picture, np.asarray(picture), path, picture.convert("L"))[i % 4])
    return images


def _sentences(rng: np.random.Generator) -> list[str]:
    words = ("red", "blue", "green", "big", "small", "leftmost", "top", "circle", "square", "star", "ring", "of", "the")
    return [" ".join(rng.choice(words, rng.integers(1, 30))) + f" {i}" for i in range(_SENTENCES)]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _peak() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, count in run(export_demo(Path(folder) / "demo"), given.calls, given.seed).items():
            print(f"{count:10} {name}")


if __name__ == "__main__":
    main()
