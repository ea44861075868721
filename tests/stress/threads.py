"""Eight threads on one Segmenter: what one thread gets, bit for bit, and a close in the midst of it.

python -m lavt_edge.tests.stress.threads --rounds 20 --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from lavt_edge.data.shapes import scene_at
from lavt_edge.errors import BackendError
from lavt_edge.runtime import Segmenter, TruncationWarning
from lavt_edge.tests.stress.source import export_demo
from PIL import Image

THREADS = 8
_CLOSINGS = 25
_LIMIT_SECONDS = 120.0

Arrays: TypeAlias = list[npt.NDArray[np.generic]]
Job: TypeAlias = Callable[[Segmenter], Arrays]

SENTENCES = (
    "the leftmost circle",
    "the big red square",
    "a triangle left of the blue ring",
    "the shape at the top",
    "smallest green star in the scene, please, of all of those that one can see there today or on any other day",
    "ZEBRA, überhaupt: 斑馬?",
)


def jobs(folder: Path) -> list[Job]:
    """Sentences, prompts, several at once and streams, on arrays, PIL images and files of different sizes."""
    scenes = [Image.fromarray(scene_at(9, "val", i).render()) for i in range(3)]
    images = [np.asarray(scenes[0]), scenes[1], scenes[1].resize((57, 131)), scenes[2].convert("L"), folder / "x.png"]
    scenes[2].resize((300, 40)).save(folder / "x.png")
    made: list[Job] = [lambda one, text=text: _encoded(one, text) for text in SENTENCES]  # type: ignore[misc]
    for image, text in itertools.product(images, SENTENCES):
        made.append(lambda one, image=image, text=text: _segmented(one, image, [text]))  # type: ignore[misc]
    for image in images:
        made.append(lambda one, image=image: _segmented(one, image, list(SENTENCES[:3])))  # type: ignore[misc]
        made.append(lambda one, image=image: _segmented(one, image, [one.encode(SENTENCES[3])]))  # type: ignore[misc]
    made.append(lambda one: _streamed(one, images, SENTENCES[1]))
    return made


def run(bundle: Path, rounds: int, seed: int, closings: int = _CLOSINGS) -> dict[str, int | float]:
    """All jobs in eight threads, `rounds` times in an order of each thread's own, then `closings` closes meanwhile.

    Raises AssertionError where a thread gets something else than one thread alone.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        todo = jobs(Path(folder))
        with Segmenter.load(bundle, device="cpu", threads=2) as alone:
            wanted = [job(alone) for job in todo]
        calls = _together(bundle, todo, wanted, rounds, seed)
        finished, refused = 0, 0
        for i in range(closings):
            done = _closed_meanwhile(bundle, todo, wanted, np.random.default_rng([seed, i]))
            finished, refused = finished + done, refused + THREADS
    return {
        "threads": THREADS,
        "calls, equal to one thread's": calls,
        "closes while others run": closings,
        "calls around a close, equal": finished,
        "calls after a close, refused": refused,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _together(bundle: Path, todo: list[Job], wanted: list[Arrays], rounds: int, seed: int) -> int:
    barrier = threading.Barrier(THREADS)
    # A cache for fewer sentences than there are: they are encoded again and again, by different threads.
    with Segmenter.load(bundle, device="cpu", threads=2, prompt_cache=3) as shared:

        def work(worker: int) -> int:
            rng = np.random.default_rng([seed, worker])
            barrier.wait(_LIMIT_SECONDS)
            order = [i for _ in range(rounds) for i in rng.permutation(len(todo))]
            for i in order:
                _check(todo[i](shared), wanted[i], f"job {i} in thread {worker}")
            return len(order)

        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(work, range(THREADS)))


def _closed_meanwhile(bundle: Path, todo: list[Job], wanted: list[Arrays], rng: np.random.Generator) -> int:
    """How many calls were answered, all rightly, until each thread was refused."""
    shared = Segmenter.load(bundle, device="cpu", threads=2, prompt_cache=3)
    orders = [rng.permutation(len(todo)) for _ in range(THREADS)]
    barrier = threading.Barrier(THREADS + 1)

    def work(worker: int) -> int:
        barrier.wait(_LIMIT_SECONDS)
        for done, i in enumerate(itertools.cycle(orders[worker])):
            try:
                found = todo[i](shared)
            except BackendError as error:
                if "the segmenter is closed" in str(error):
                    return done
                raise
            _check(found, wanted[i], f"job {i} around a close")
        raise AssertionError

    with ThreadPoolExecutor(THREADS) as pool:
        works = [pool.submit(work, worker) for worker in range(THREADS)]
        barrier.wait(_LIMIT_SECONDS)
        time.sleep(rng.uniform(0, 0.3))
        shared.close()
        return sum(one.result(_LIMIT_SECONDS) for one in works)


def _check(found: Arrays, wanted: Arrays, what: str) -> None:
    assert len(found) == len(wanted), what
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)), f"{what}: other outputs than alone"


def _encoded(segmenter: Segmenter, text: str) -> Arrays:
    prompt = segmenter.encode(text)
    return [prompt.prompt, prompt.word_mask]


def _segmented(segmenter: Segmenter, image: Image.Image, prompts: list) -> Arrays:
    given = prompts[0] if len(prompts) == 1 else prompts
    found = segmenter.segment(image, given)
    return [array for one in (found if isinstance(found, list) else [found]) for array in (one.mask, one.probability)]


def _streamed(segmenter: Segmenter, images: list, text: str) -> Arrays:
    return [array for one in segmenter.stream(images, text) for array in (one.mask, one.probability)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, count in run(export_demo(Path(folder) / "demo"), given.rounds, given.seed).items():
            print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
