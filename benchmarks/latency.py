"""Latency of a bundle on this machine, with and without what surrounds the graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..runtime import Segmenter
from ..runtime.postprocess import foreground
from ..runtime.preprocess import resize, to_rgb_array
from ..runtime.prompt import Prompt

PARTS = ("segment", "image graph", "preprocessing", "postprocessing", "text graph")


@dataclass
class Latencies:
    """Milliseconds of each round by part; see PARTS.

    "segment" is a whole call with a cached prompt: preprocessing, image graph, postprocessing. "text graph" is what a
    new sentence costs once.
    """

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def summary(self, part: str) -> tuple[float, float, float]:
        """Median, 90th and 99th percentile of a part, in milliseconds."""
        median, p90, p99 = np.percentile(self.milliseconds[part], (50, 90, 99))
        return float(median), float(p90), float(p99)


def measure_latency(
    segmenter: Segmenter,
    image: npt.NDArray[np.uint8],
    sentence: str,
    *,
    warmup: int = 3,
    rounds: int = 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Latencies:
    """Times every part once per round, after `warmup` rounds that do not count. `image` is (H,W,3) RGB."""
    latencies = Latencies()
    prompt = segmenter.encode(sentence)
    height, width = image.shape[:2]
    feeds = _graph_feeds(segmenter, image, prompt)
    logits = segmenter.run_graph(*feeds)[0]
    tokens = np.tile(prompt.word_mask.astype(np.int64), (len(feeds[0]), 1))
    parts: dict[str, Callable[[], object]] = {
        "segment": lambda: segmenter.segment(image, prompt),
        "image graph": lambda: segmenter.run_graph(*feeds),
        "preprocessing": lambda: resize(to_rgb_array(image), *segmenter.input_size),
        "postprocessing": lambda: foreground(logits, height, width),
        "text graph": lambda: segmenter.encode_graph(tokens, tokens),
    }
    for number in range(warmup + rounds):
        for part, run in parts.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= warmup:
                latencies.milliseconds[part].append(1e3 * elapsed)
        progress(number + 1, warmup + rounds)
    return latencies


def _graph_feeds(
    segmenter: Segmenter, image: npt.NDArray[np.uint8], prompt: Prompt
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    batch = segmenter.manifest.input.batch or 1
    pixels = resize(to_rgb_array(image), *segmenter.input_size)
    return tuple(np.repeat(part[None], batch, axis=0) for part in (pixels, prompt.prompt, prompt.word_mask))  # type: ignore[return-value]
